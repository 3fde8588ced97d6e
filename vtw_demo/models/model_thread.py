"""One thread for all that a model computes.

On a CPU torch's operators run in OpenMP's threads, and each thread that calls them gets a pool of its own. With more
pools than processors these threads go to sleep after each operator instead of waiting for the next: on two cores the
embedded model's answers took twice as long from the second calling thread on.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

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
    """Let the model's thread do `work` after what it has in hand. Raises RuntimeError on that thread itself, which
    would wait for its own end."""
    if _is_model_thread():
        raise RuntimeError("The model's thread can't wait for what it has to do itself.")
    return _executor.submit(work, *args, **kwargs)


def on_model_thread(work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    """What `work` gives, done by the model's thread; raises what it raises."""
    if _is_model_thread():
        return work(*args, **kwargs)
    return _executor.submit(work, *args, **kwargs).result()


def _is_model_thread() -> bool:
    return threading.current_thread().name.startswith(f"{_PREFIX}_")
