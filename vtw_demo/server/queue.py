"""Who uses the model next: in turn, however much each visitor asks for, and as many at once as it runs.

Gradio's queue serves who came first, holds its place from a generator's first step to its last, refuses what goes on
with something begun when it is full, and tells functions nothing of places. In tests/server/test_queue.py:
test_one_at_a_time_and_each_visitor_in_turn_however_much_one_asks_for,
test_what_takes_long_lets_those_who_wait_go_first_between_its_steps, test_places_and_expected_seconds,
test_a_full_queue_says_so_at_once_and_what_follows_a_turn_may_wait_all_the_same.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, zip_longest

from vtw_demo.formats import count
from vtw_demo.server.errors import FAILED, QueueFullError, fault_of, free_what_failed
from vtw_demo.server.monitoring import Monitoring

PLACES = 64
DONE, STOPPED = "done", "stopped"
# How soon who waits sees that they were stopped, and how often at most they are told of their place.
LOOK_SECONDS = 0.1
TELL_SECONDS = 1.0
# Who waits is told something at least so often: only then is a lost connection noticed.
SILENT_SECONDS = 5.0
# How much the latest turn of a kind counts in what the next is expected to take.
LATEST_SHARE = 0.3
KEPT_VISITORS = 4 * PLACES


class StoppedError(Exception):
    """Who waited was stopped, or the page closes: nothing was run."""


@dataclass(frozen=True)
class Place:
    """A place in the queue: so many turns end first, and this one begins in about so many seconds; None before any turn
    has shown how long one takes. With none `ahead` it has begun; again where `why` says that it had to."""

    ahead: int
    seconds: float | None = None
    why: str = ""

    def __str__(self) -> str:
        if self.why:
            return self.why
        if not self.ahead:
            return "Running."
        place = "You are next" if self.ahead == 1 else f"{count(self.ahead, 'turn')} before yours"
        return f"{place}; {about(self.seconds)}." if self.seconds is not None else f"{place}."


class Turn:
    """One use of the model: waited for, then held, then over. Made by `Turns.asked`."""

    def __init__(self, turns: Turns, visitor: str, kind: str, stop: threading.Event, is_alone: bool) -> None:
        self._turns = turns
        self.visitor = visitor
        self.kind = kind
        self.stop = stop
        self.is_alone = is_alone
        self.asked_at = self.begun_at = time.monotonic()

    def wait(self) -> Iterator[Place]:
        """Places in the queue, as they change; at the last, with none ahead, it has begun. Raises StoppedError once
        `stop` is set."""
        told, told_at = Place(0), -SILENT_SECONDS
        while (place := self._turns._place(self)).ahead:
            now = time.monotonic()
            is_news = str(place) != str(told) and now - told_at >= TELL_SECONDS
            if is_news or now - told_at >= SILENT_SECONDS:
                told, told_at = place, now
                yield place
        yield place

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits, but for more of the same."""
        waiting = self._turns._waiting
        return any((turn.visitor, turn.kind) != (self.visitor, self.kind) for turn in tuple(waiting))

    def give_way(self) -> Iterator[Place]:
        """Let those who wait go first, between two steps of what takes long; then as `wait`. Nothing if none wait."""
        if self._turns._hand_on(self):
            yield from self.wait()


class Turns:
    """The queue for one model, which `at_once` turns may use. The next is that of the visitor whose last one ended
    longest ago; of one visitor's turns, the one asked for first.

    `places`: how many may wait; what belongs to a visitor's turn before may always. `is_closing`: no turn begins any
    more. `monitoring` is told how many wait, and of each turn that ended.
    """

    def __init__(self, places: int = PLACES, monitoring: Monitoring | None = None, at_once: int = 1) -> None:
        self.places = places
        self.at_once = at_once
        self.is_closing = False
        self._monitoring = monitoring or Monitoring()
        self._changed = threading.Condition()
        self._waiting: list[Turn] = []
        self._held: list[Turn] = []
        # Visitors, the one whose last turn ended longest ago first.
        self._served: deque[str] = deque(maxlen=KEPT_VISITORS)
        self._seconds: dict[str, float] = {}

    @contextmanager
    def asked(
        self,
        visitor: str,
        kind: str,
        stop: threading.Event | None = None,
        *,
        follows: bool = False,
        is_alone: bool = False,
    ) -> Iterator[Turn]:
        """A turn for `visitor`, to be waited for; it is over at the end, begun or not.

        `follows`: it belongs to what the visitor has begun already; `is_alone`: no other goes on beside it. Raises
        QueueFullError where no more may wait.
        """
        turn = Turn(self, visitor, kind, stop or threading.Event(), is_alone)
        with self._changed:
            if not follows and len(self._waiting) >= self.places:
                seconds = self._expected(self._waiting)
                again = "in a while" if seconds is None else f"in {about(seconds)}"
                raise QueueFullError(
                    f"The queue is full: {count(self.places, 'request')} wait already. Try again {again}."
                )
            self._waiting.append(turn)
            self._next()
        outcome = FAILED
        try:
            yield turn
            outcome = STOPPED if turn.stop.is_set() else DONE
        except (StoppedError, GeneratorExit):
            outcome = STOPPED
            raise
        except Exception as error:
            outcome = fault_of(error).kind
            free_what_failed(error)
            raise
        finally:
            self._end(turn, outcome)

    @property
    def waiting(self) -> int:
        """How many turns wait."""
        return len(self._waiting)

    def wait_until_idle(self, seconds: float, stop: threading.Event) -> None:
        """Wait, so long at most, for a second in which nobody uses it: what follows a turn is asked for sooner."""
        since = idle_since = time.monotonic()
        while (now := time.monotonic()) - since < seconds and now - idle_since < 1 and not stop.is_set():
            if self._held or self._waiting:
                idle_since = now
            stop.wait(LOOK_SECONDS)

    def close(self, seconds: float) -> None:
        """Stop the turns in hand and those that wait, and wait so long for their end."""
        with self._changed:
            self.is_closing = True
            for turn in (*self._held, *self._waiting):
                turn.stop.set()
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._held, seconds)

    def _place(self, turn: Turn) -> Place:
        """Where `turn` is, after a moment unless it has begun."""
        with self._changed:
            self._changed.wait_for(lambda: turn in self._held or self._is_stopped(turn), LOOK_SECONDS)
            if self._is_stopped(turn):
                turn.stop.set()
                raise StoppedError
            if turn in self._held:
                return Place(0)
            order = self._order()
            ahead = order[: order.index(turn)]
            return Place(len(ahead) + 1, self._expected(ahead))

    def _is_stopped(self, turn: Turn) -> bool:
        return self.is_closing or turn.stop.is_set()

    def _hand_on(self, turn: Turn) -> bool:
        with self._changed:
            if not turn.is_awaited:
                return False
            self._over(turn)
            turn.asked_at = time.monotonic()
            self._waiting.append(turn)
            self._next()
            return True

    def _end(self, turn: Turn, outcome: str) -> None:
        with self._changed:
            if turn in self._waiting:
                self._waiting.remove(turn)
                self._monitoring.waiting(len(self._waiting))
            if turn not in self._held:
                return
            self._over(turn)
            waited, taken = turn.begun_at - turn.asked_at, time.monotonic() - turn.begun_at
            self._monitoring.ran(turn.kind, outcome, waited, taken)
            self._next()

    def _over(self, turn: Turn) -> None:
        """`turn`, which was held, isn't any more."""
        self._held.remove(turn)
        taken = time.monotonic() - turn.begun_at
        before = self._seconds.get(turn.kind, taken)
        self._seconds[turn.kind] = before + LATEST_SHARE * (taken - before)
        if turn.visitor in self._served:
            self._served.remove(turn.visitor)
        self._served.append(turn.visitor)
        self._changed.notify_all()

    def _next(self) -> None:
        while self._waiting and self._may_begin(turn := self._order()[0]):
            self._held.append(turn)
            self._waiting.remove(turn)
            turn.begun_at = time.monotonic()
            self._changed.notify_all()
        self._monitoring.waiting(len(self._waiting))

    def _may_begin(self, turn: Turn) -> bool:
        if turn.is_alone or any(held.is_alone for held in self._held):
            return not self._held
        return len(self._held) < self.at_once

    def _order(self) -> list[Turn]:
        """Those that wait, in the order in which they will begin if nobody else comes."""
        held = [turn.visitor for turn in self._held]  # they will have been served before any of them
        last = {visitor: position for position, visitor in enumerate([*self._served, *held])}
        turns: defaultdict[str, list[Turn]] = defaultdict(list)
        for turn in self._waiting:
            turns[turn.visitor].append(turn)
        visitors = sorted(turns, key=lambda visitor: last.get(visitor, -1))
        rounds = zip_longest(*(turns[visitor] for visitor in visitors))
        return [turn for turn in chain.from_iterable(rounds) if turn is not None]

    def _expected(self, ahead: list[Turn]) -> float | None:
        """Seconds until the turn after those `ahead` and in hand; None where none has been measured yet."""
        if not self._seconds:
            return None
        unknown, now = sum(self._seconds.values()) / len(self._seconds), time.monotonic()
        left = [max(self._seconds.get(turn.kind, unknown) - (now - turn.begun_at), 0.0) for turn in self._held]
        ends = sorted([*left, *[0.0] * (self.at_once - len(left))])
        for turn in ahead:
            heapq.heapreplace(ends, ends[0] + self._seconds.get(turn.kind, unknown))
        return ends[0]


def about(seconds: float) -> str:
    """Rounded as coarsely as a guess deserves."""
    if seconds >= 90:
        return f"about {round(seconds / 60)} min"
    step = 1 if seconds < 10 else 5
    return f"about {max(step * round(seconds / step), 1)} s"
