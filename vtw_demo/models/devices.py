"""Where a model can run: the device, the type it computes in, and how much memory is free there."""

from __future__ import annotations

import gc
from pathlib import Path

import psutil
import torch

from vtw_demo.errors import UserError

# How torch's allocators and CUDA's libraries say it in a plain RuntimeError.
OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def find_device(asked: str | None) -> torch.device:
    """The device that was asked for; for None a GPU where there is one. Raises ValueError for one that isn't there."""
    if asked is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise UserError(
            f"Unknown device {asked!r}: name one as torch does, for example cuda, cuda:1 or cpu."
        ) from error
    if device.type not in ("cpu", "cuda"):
        try:
            torch.ones(1, device=device).item()
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"The device {asked!r} is not there, or holds no numbers. Use cpu instead.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"The device {asked!r} is not there: torch sees {torch.cuda.device_count()} CUDA GPUs. Use cpu instead."
        )
    return device


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes in it, else float32."""
    if device.type != "cpu":
        return torch.bfloat16
    # Without these instructions a CPU's bfloat16 products take three times as long as its float32 ones.
    capabilities = torch.cpu.get_capabilities()
    fast = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    return torch.bfloat16 if fast else torch.float32


def free_memory(device: torch.device) -> int:
    """Bytes that a model could still take on a device. Those that torch holds unused count as free."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    available = psutil.virtual_memory().available
    limit = _container_limit()
    return available if limit is None else min(available, limit)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, this machine's memory among them, had no room for what was computed."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def give_memory_back() -> None:
    """Free what nothing refers to any more, and hand what torch holds unused of a GPU to whoever wants it next."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _container_limit() -> int | None:
    """What is left of a container's memory (cgroup v2), the files in its page cache not counted; None without one."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return None
    if limit == "max":
        return None
    reclaimable = sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))
    return int(limit) - used + reclaimable
