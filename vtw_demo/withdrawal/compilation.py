"""Forward passes that run as they are written, whatever torch.compile has made of them before.

Compiled code runs the hooks that were there when it was traced, and no others. So nothing may run compiled inside a
context that places hooks, nor be traced there and run compiled after it.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_lock = threading.Lock()
_contexts = 0
_stance = ExitStack()


@contextmanager
def uncompiled() -> Iterator[None]:
    """Nothing of this process runs compiled inside a `with` block, in whatever thread; blocks may overlap."""
    global _contexts
    with _lock:
        _contexts += 1
        if _contexts == 1:
            _stance.enter_context(torch.compiler.set_stance("force_eager"))
    try:
        yield
    finally:
        with _lock:
            _contexts -= 1
            if not _contexts:
                _stance.close()
