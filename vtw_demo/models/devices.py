"""Where a model runs: the device, the type it computes in, the memory that is free there, and the one thread.

On a CPU torch's operators run in OpenMP's threads, and each thread that calls them gets a pool of its own. With more
pools than processors these threads go to sleep after each operator instead of waiting for the next: on two cores the
embedded model's answers took twice as long from the second calling thread on. So one thread computes for all.
"""

import gc
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from vtw_demo.errors import UserError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# How torch's allocators and CUDA's libraries say it in a plain RuntimeError.
OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def find_device(asked: str | None) -> torch.device:
    """The device that was asked for; for None a GPU where there is one. Raises UserError for one that isn't there."""
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


def check_finite(logits: torch.Tensor, names: Sequence[str] = ()) -> torch.Tensor:
    """`logits`, shape (rows, ..., vocabulary). Raises UserError for NaN and infinity among them; `names`, of the rows,
    tell which is the first such."""
    is_finite = logits.isfinite().flatten(1).all(1)
    if is_finite.all():
        return logits
    rows = [f"{name}: " for name, is_right in zip(names, is_finite.tolist(), strict=False) if not is_right]
    raise UserError(
        f"{''.join(rows[:1])}The model computes NaN or infinity, from which nothing follows, in "
        f"{str(logits.dtype).removeprefix('torch.')}. Load it in bfloat16 or float32 and not quantized; if that is no "
        "help, its weights are damaged."
    )


def free_memory(device: torch.device) -> int:
    """Bytes that a model could still take on a device. Those that torch holds unused count as free."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    import psutil  # comes with accelerate

    available = psutil.virtual_memory().available
    limit = _container_limit()
    return available if limit is None else min(available, limit)


def on_zero_gpu() -> bool:
    """Whether this process runs on ZeroGPU, hardware of Hugging Face Spaces that lends a GPU to a function for as long
    as it runs; found out as the package `spaces` does."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


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


_PREFIX = "model"
_executor = ThreadPoolExecutor(1, thread_name_prefix=_PREFIX)


def _renew() -> None:
    global _executor
    _executor = ThreadPoolExecutor(1, thread_name_prefix=_PREFIX)


# A forked process has no threads but the one that forked.
os.register_at_fork(after_in_child=_renew)


def start_on_model_thread(
    work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Future[Result]:
    """Let the model's thread do `work` after what it has in hand. On that thread itself it would never end."""
    if _is_model_thread():
        raise RuntimeError("The model's thread can't wait for what it has to do itself.")
    return _executor.submit(work, *args, **kwargs)


def on_model_thread(work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    """What `work` gives, done by the model's thread; raises what it raises."""
    return work(*args, **kwargs) if _is_model_thread() else _executor.submit(work, *args, **kwargs).result()


def _is_model_thread() -> bool:
    return threading.current_thread().name.startswith(f"{_PREFIX}_")
