"""Where a model runs: the device, the type it computes in, and the one thread.

On a CPU torch's operators run in OpenMP's threads, and each thread that calls them gets a pool of its own. With more
pools than processors these threads go to sleep after each operator instead of waiting for the next: on two cores the
embedded model's answers took twice as long from the second calling thread on. So one thread computes for all.
"""

import gc
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import torch

from vtw_demo.errors import UserError
from vtw_demo.models import hardware

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# How torch's allocators and the GPUs' libraries say it in a plain RuntimeError.
OUT_OF_MEMORY = (
    *("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"),
    "MPS backend out of memory",
)
_refused: dict[str, str] = {}


def find_device(asked: str | None) -> torch.device:
    """The one asked for; for None a GPU that wasn't refused, if there is one. UserError for one that isn't there."""
    if asked is None:
        found = hardware.accelerator()
        return torch.device("cpu" if found is None or found in _refused else found)
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
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise UserError(f"The device {asked!r} is not there: torch sees {count} CUDA GPUs. Use cpu instead.")
    return device


def refuse_device(device: torch.device, why: str) -> None:
    """From now on no model runs there that wasn't asked to."""
    _refused[device.type] = why


def refusals() -> str:
    """Why devices that are here aren't used, in sentences."""
    return " ".join(_refused.values())


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes in it, else float32."""
    return torch.bfloat16 if device.type != "cpu" or hardware.computes_in_bfloat16() else torch.float32


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
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


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
