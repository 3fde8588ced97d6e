import threading
from contextlib import closing
from functools import partial

import pytest

from vtw_demo.comparison.calibration import Calibration, CalibrationProgress
from vtw_demo.comparison.calibration_store import CalibrationStore
from vtw_demo.comparison.compare import Comparison, RunProgress
from vtw_demo.server.caller import Caller, LostConnection
from vtw_demo.server.engine import Engine
from vtw_demo.server.query import Query
from vtw_demo.server.queue import Place, StoppedError


@pytest.fixture
def engine(vlm, tmp_path):
    return Engine(vlm, CalibrationStore(tmp_path))


@pytest.fixture
def query(picture):
    return Query(picture, "Describe the picture.", 6, 64)


def measured(engine, visitor="other"):
    """What a measurement gives, and the places that its visitor had before."""
    places, steps = [], engine.measure(visitor, engine.vlm, lambda: "measured", threading.Event())
    while True:
        try:
            places.append(next(steps))
        except StopIteration as end:
            return end.value, places


def test_a_comparison_begins_with_its_place_and_ends_its_turn(engine, query):
    events = list(engine.compare("a", engine.vlm, query))
    assert events[0] == Place(0)
    assert isinstance(events[-1], Comparison)
    assert measured(engine) == ("measured", [Place(0)])


def test_closing_a_comparison_frees_the_model_within_a_token(engine, query):
    seen = threading.Event()
    with closing(engine.compare("a", engine.vlm, query)) as events:
        assert next(events) == Place(0)
        while not isinstance(next(events), RunProgress):
            pass
        other = threading.Thread(target=lambda: measured(engine) and seen.set())
        other.start()
        assert not seen.wait(0.3)
    other.join(30)
    assert seen.is_set()


def test_a_lost_connection_ends_the_run_within_a_token(engine, query):
    """The caller of the API is told nothing before the end: only the stop can end their run."""
    lost, tokens = threading.Event(), []
    stop = LostConnection(Caller("program", lost.is_set))
    for event in engine.compare("program", engine.vlm, query, stop=stop):
        if isinstance(event, RunProgress):
            tokens.append(event.new_tokens)
            if event.new_tokens == 3:
                lost.set()
    assert tokens[-1] <= 4
    assert measured(engine)[0] == "measured"
    with pytest.raises(ValueError, match="stopped before its end"):
        engine.compare_to_end("program", engine.vlm, query, stop)


def test_a_calibration_lets_others_go_first_between_its_samples(engine, query):
    stop, answered = threading.Event(), threading.Event()

    def compare():
        assert isinstance(list(engine.compare("short", engine.vlm, query))[-1], Comparison)
        answered.set()

    progress, places, other = [], [], None
    with closing(engine.calibrate("long", 12, 0.003, stop)) as events:
        for event in events:
            if isinstance(event, Place):
                places.append(event)
            elif isinstance(event, CalibrationProgress):
                progress.append(event.measured)
                if other is None:
                    other = threading.Thread(target=compare)
                    other.start()
                    assert _until(lambda: engine.turns.waiting == 1)
                elif len(progress) == 2:
                    # It was its turn between the first sample and this one.
                    assert answered.is_set()
            else:
                assert isinstance(event, Calibration)
    assert progress[-1] == 12
    assert any(place.ahead for place in places)
    assert engine.calibration is not None
    other.join(30)


def test_a_measurement_that_is_stopped_while_it_waits_is_never_made(engine, query):
    stop, made = threading.Event(), []
    with closing(engine.compare("a", engine.vlm, query)) as events:
        next(events)
        steps = engine.measure("b", engine.vlm, partial(made.append, 1), stop)
        assert next(steps).ahead == 1
        stop.set()
        with pytest.raises(StoppedError):
            next(steps)
    assert not made


def test_a_closed_engine_runs_nothing_more(engine, query):
    running = engine.compare("a", engine.vlm, query)
    next(running)
    closer = threading.Thread(target=engine.close)
    closer.start()
    assert not [event for event in running if isinstance(event, Comparison)]
    closer.join(30)
    assert list(engine.compare("b", engine.vlm, query)) == []
    with pytest.raises(ValueError, match="stopped"):
        engine.compare_to_end("c", engine.vlm, query, threading.Event())


def _until(condition):
    waited = threading.Event()
    for _ in range(1000):
        if condition():
            return True
        waited.wait(0.01)
    return False
