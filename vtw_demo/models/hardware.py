"""What this machine has: the one place where torch and the system are asked for devices and memory."""

from pathlib import Path
from typing import Any

import torch


def accelerator() -> str | None:
    """ "cuda" or "mps" (Apple's GPU) where torch sees one; None where it doesn't."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else None


def computes_in_bfloat16() -> bool:
    """Whether the CPU has instructions for it; without, its bfloat16 products take three times as long as float32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def all_memory() -> int:
    return _memory().total


def free_memory(device: torch.device) -> int:
    """Bytes that a model could still take on a device. Those that torch holds unused count as free."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    available, limit = _memory().available, _container_limit()
    if device.type == "mps":  # a share of the machine's memory
        limit = torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return available if limit is None else min(available, limit)


def _memory() -> Any:
    import psutil  # comes with accelerate, which the method alone doesn't need

    return psutil.virtual_memory()


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
