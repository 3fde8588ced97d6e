"""Who a request is from, and whether they are still there to read the answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Caller:
    """`session`: the page's or the program's, as Gradio names it; `is_lost` says whether its connection is."""

    session: str
    is_lost: Callable[[], bool]


_caller: ContextVar[Caller] = ContextVar("caller")


@contextmanager
def called_by(caller: Caller) -> Iterator[None]:
    """What is called within knows its `caller`."""
    token = _caller.set(caller)
    try:
        yield
    finally:
        _caller.reset(token)


def caller() -> Caller:
    """Of the function of the page that is being called. Raises LookupError outside of one."""
    return _caller.get()


class LostConnection(threading.Event):
    """A stop that is set as soon as the caller's connection is lost: nobody would read what is run on."""

    def __init__(self, caller: Caller) -> None:
        super().__init__()
        self._is_lost = caller.is_lost

    def is_set(self) -> bool:
        return super().is_set() or self._is_lost()
