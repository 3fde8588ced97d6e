import threading
import time
from contextlib import ExitStack, closing

import pytest

from vtw_demo.errors import UserError
from vtw_demo.server.queue import Place, QueueFullError, StoppedError, Turns


class Told:
    """What the monitoring was told."""

    def __init__(self):
        self.waited, self.ended = [], []

    def waiting(self, turns):
        self.waited.append(turns)

    def ran(self, kind, outcome, waited_seconds, seconds):
        self.ended.append((kind, outcome))


class Visit:
    """A visitor in a thread of their own, who holds each of their turns until told to let go."""

    def __init__(self, turns, visitor, order, *, steps=1, kind="comparison"):
        self.turns, self.visitor, self.order, self.steps, self.kind = turns, visitor, order, steps, kind
        self.let_go = threading.Semaphore(0)
        self.stop = threading.Event()
        self.ended_by = None
        before = turns.waiting
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
        # The order in which they ask must be the one in which they were made.
        until(lambda: turns.waiting > before or (self.order and self.order[-1][0] == visitor))

    def run(self):
        try:
            with self.turns.asked(self.visitor, self.kind, self.stop) as turn:
                list(turn.wait())
                for step in range(self.steps):
                    self.order.append((self.visitor, step))
                    assert self.let_go.acquire(timeout=30)
                    if step < self.steps - 1:
                        list(turn.give_way())
        except Exception as error:
            self.ended_by = error

    def end(self, steps=None):
        for _ in range(steps or self.steps):
            self.let_go.release()
        self.thread.join(30)
        assert not self.thread.is_alive()


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_one_at_a_time_and_each_visitor_in_turn_however_much_one_asks_for():
    turns, order = Turns(), []
    first = Visit(turns, "a", order)
    others = [Visit(turns, visitor, order) for visitor in ("a", "a", "b", "a", "c", "b")]
    assert order == [("a", 0)]
    first.end()
    by_visitor = {"a": [others[0], others[1], others[3]], "b": [others[2], others[5]], "c": [others[4]]}
    for served in range(6):
        until(lambda served=served: len(order) == served + 2)
        assert turns.waiting == 5 - served  # nobody else while one holds the turn
        by_visitor[order[-1][0]].pop(0).end()
    assert [visitor for visitor, _ in order[1:]] == ["b", "c", "a", "b", "a", "a"]


def test_what_takes_long_lets_those_who_wait_go_first_between_its_steps():
    turns, order = Turns(), []
    long = Visit(turns, "long", order, steps=3, kind="answer")
    short = Visit(turns, "short", order)
    long.let_go.release()
    until(lambda: len(order) == 2)
    assert order[1] == ("short", 0)
    short.end()
    until(lambda: len(order) == 3)
    assert order[2] == ("long", 1)
    # With nobody waiting it just goes on.
    long.end(steps=2)
    assert order[3:] == [("long", 2)]
    assert long.ended_by is None


def test_places_and_expected_seconds():
    turns, order = Turns(), []
    with turns.asked("z", "comparison") as turn:
        assert list(turn.wait()) == [Place(0)]
        turn.begun_at -= 0.4
    holder = Visit(turns, "a", order)
    second = Visit(turns, "b", order)
    with turns.asked("c", "comparison") as turn, closing(turn.wait()) as places:
        place = next(places)
        assert place.ahead == 2
        # One comparison is known to take 0.4 s or more: one waits, one is in hand.
        assert place.seconds >= 0.4
        holder.end()
        place = next(places)
        assert place.ahead == 1
        second.end()
        assert next(places) == Place(0)


def test_as_many_at_once_as_the_model_runs_and_in_turn_all_the_same():
    turns, order = Turns(at_once=2), []
    first, second = Visit(turns, "a", order), Visit(turns, "a", order)
    until(lambda: len(order) == 2)
    waiting = [Visit(turns, visitor, order) for visitor in ("a", "b")]
    assert (order, turns.waiting) == ([("a", 0), ("a", 0)], 2)
    first.end()
    until(lambda: len(order) == 3)
    assert (order[-1], turns.waiting) == (("b", 0), 1)
    second.end()
    until(lambda: len(order) == 4)
    for visit in waiting:
        visit.end()


def test_the_expected_seconds_count_all_that_go_on_at_once():
    turns, order = Turns(at_once=2), []
    with turns.asked("z", "comparison") as turn:
        list(turn.wait())
        turn.begun_at -= 100
    visits = [Visit(turns, visitor, order) for visitor in "abcd"]
    until(lambda: len(order) == 2)
    with turns.asked("e", "comparison") as turn, closing(turn.wait()) as places:
        place = next(places)
    # Two in hand and two that wait, of about 100 s each: this one begins once two pairs are over.
    assert place.ahead == 3
    assert place.seconds == pytest.approx(200, rel=0.1)
    for visit in visits:
        visit.end()


def test_a_turn_alone_waits_for_all_others_and_they_for_it():
    turns, order = Turns(at_once=2), []
    first, second = (Visit(turns, visitor, order) for visitor in "ab")
    until(lambda: len(order) == 2)
    with turns.asked("c", "model switch", is_alone=True) as turn, closing(turn.wait()) as places:
        assert next(places).ahead == 1
        later = Visit(turns, "d", order)
        first.end()
        assert turns.waiting == 2, "neither beside the other that goes on"
        second.end()
        while next(places).ahead:
            pass
        assert turns.waiting == 1
    until(lambda: len(order) == 3)
    later.end()


def test_places_in_words():
    assert str(Place(0)) == "Running."
    assert str(Place(1)) == "You are next."
    assert str(Place(1, 3.4)) == "You are next; about 3 s."
    assert str(Place(5, 0.2)) == "5 turns before yours; about 1 s."
    assert str(Place(5, 43.0)) == "5 turns before yours; about 45 s."
    assert str(Place(0, why="Once more.")) == "Once more."
    assert str(Place(30, 400.0)) == "30 turns before yours; about 7 min."


def test_a_full_queue_says_so_at_once_and_what_follows_a_turn_may_wait_all_the_same():
    order, told = [], Told()
    turns = Turns(places=2, monitoring=told)
    visits = [Visit(turns, visitor, order) for visitor in "abc"]
    with pytest.raises(QueueFullError, match="2 requests wait already"), turns.asked("d", "comparison"):
        pass
    assert turns.waiting == max(told.waited) == 2
    with turns.asked("a", "measurement", follows=True):
        assert turns.waiting == 3
    for visit in visits:
        visit.end()
    with turns.asked("d", "comparison") as turn:
        assert list(turn.wait()) == [Place(0)]
    assert told.ended == [("comparison", "done")] * 4
    assert told.waited[-1] == 0


def test_who_is_stopped_or_leaves_while_waiting_gives_up_the_place():
    turns, order = Turns(), []
    holder = Visit(turns, "a", order)
    stopped = Visit(turns, "b", order)
    stopped.stop.set()
    stopped.thread.join(30)
    assert isinstance(stopped.ended_by, StoppedError)
    assert turns.waiting == 0
    with ExitStack() as stack:
        turn = stack.enter_context(turns.asked("c", "comparison"))
        assert next(turn.wait()).ahead == 1
    assert turns.waiting == 0
    last = Visit(turns, "d", order)
    holder.end()
    until(lambda: order[-1][0] == "d")
    last.end()


def test_a_failed_turn_is_over_and_its_outcome_told():
    told = Told()
    turns = Turns(monitoring=told)
    for error, outcome in (
        (ValueError, "failed"), (RuntimeError, "failed"), (UserError, "refused"), (MemoryError, "out of memory"),
        (GeneratorExit, "stopped"),
    ):  # fmt: skip
        with pytest.raises(error), turns.asked("a", "comparison") as turn:  # noqa: PT012
            list(turn.wait())
            raise error
        assert told.ended[-1] == ("comparison", outcome)
    with turns.asked("a", "sweep") as turn:
        list(turn.wait())
        turn.stop.set()
    assert told.ended[-1] == ("sweep", "stopped")


def test_closing_stops_the_turn_in_hand_and_those_that_wait():
    turns, order = Turns(), []
    holder, waiting = Visit(turns, "a", order), Visit(turns, "b", order)
    closer = threading.Thread(target=turns.close, args=[30.0])
    closer.start()
    waiting.thread.join(30)
    assert isinstance(waiting.ended_by, StoppedError)
    assert holder.stop.is_set()
    assert closer.is_alive()
    holder.end()
    closer.join(30)
    assert not closer.is_alive()
    with pytest.raises(StoppedError), turns.asked("c", "comparison") as turn:
        list(turn.wait())
