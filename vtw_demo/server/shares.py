"""Work that several turns share: each takes a part of what is left, and gives back what it hasn't done."""

import math
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Shares(Generic[Item]):
    """`items` for so many turns. `is_over`: nothing is taken any more."""

    def __init__(self, items: Sequence[Item], turns: int) -> None:
        self.is_over = False
        self._left, self._turns = deque(items), turns
        self._changing = threading.Lock()

    @contextmanager
    def taken(self) -> Iterator[deque[Item]]:
        """A share, from whose left its user takes what is done; the rest is given back."""
        share: deque[Item] = deque()
        self.take_more(share)
        try:
            yield share
        finally:
            with self._changing:
                self._left.extendleft(reversed(share))

    def take_more(self, share: deque[Item]) -> None:
        with self._changing:
            count = 0 if self.is_over else math.ceil(len(self._left) / self._turns)
            share.extend(self._left.popleft() for _ in range(count))
