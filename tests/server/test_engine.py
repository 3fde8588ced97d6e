import threading
from contextlib import closing
from dataclasses import replace

import pytest

from vtw_demo.comparison.analysis import Analysis, Part
from vtw_demo.comparison.calibration import Calibration, CalibrationProgress, CalibrationStore
from vtw_demo.comparison.compare import Comparison, RunProgress
from vtw_demo.errors import UserError
from vtw_demo.models.video import Clip
from vtw_demo.server.access import LostConnection
from vtw_demo.server.engine import Engine
from vtw_demo.server.query import Query
from vtw_demo.server.queue import Place, StoppedError


@pytest.fixture
def engine(vlm, tmp_path):
    return Engine(vlm, CalibrationStore(tmp_path))


@pytest.fixture
def query(picture):
    return Query(picture, "Describe the picture.", 6, 64)


@pytest.fixture
def analysis(vlm, query, make_comparison):
    return Analysis(vlm, query.prompt(vlm), make_comparison())


def compare(engine, query, visitor="a", stop=None):
    return engine.compare(visitor, engine.vlm, query, query.prompt(engine.vlm), stop=stop)


def measured(engine, analysis):
    """The places that a visitor had before a measurement, which is made then."""
    places = list(engine.measure("other", analysis, Part("staircase"), threading.Event()))
    assert analysis.known(Part("staircase")) is not None
    return places


def test_a_comparison_begins_with_its_place_and_ends_its_turn(engine, query, analysis):
    events = list(compare(engine, query))
    assert events[0] == Place(0)
    assert isinstance(events[-1], Comparison)
    assert measured(engine, analysis) == [Place(0)]
    assert measured(engine, analysis) == [], "what is known takes no turn"


def test_closing_a_comparison_frees_the_model_within_a_token(engine, query, analysis):
    seen = threading.Event()
    with closing(compare(engine, query)) as events:
        assert next(events) == Place(0)
        while not isinstance(next(events), RunProgress):
            pass
        other = threading.Thread(target=lambda: measured(engine, analysis) and seen.set())
        other.start()
        assert not seen.wait(0.3)
    other.join(30)
    assert seen.is_set()


def test_a_lost_connection_ends_the_run_within_a_token(engine, query, analysis):
    """The caller of the API is told nothing before the end: only the stop can end their run."""
    lost, tokens = threading.Event(), []
    stop = LostConnection(lost.is_set)
    for event in compare(engine, query, "program", stop):
        if isinstance(event, RunProgress):
            tokens.append(event.new_tokens)
            if event.new_tokens == 3:
                lost.set()
    assert tokens[-1] <= 4
    assert measured(engine, analysis)
    with pytest.raises(ValueError, match="stopped before its end"):
        engine.compare_to_end("program", engine.vlm, query, stop)


def test_a_calibration_lets_others_go_first_between_its_samples(engine, query):
    stop, answered = threading.Event(), threading.Event()

    def ask():
        assert isinstance(list(compare(engine, query, "short"))[-1], Comparison)
        answered.set()

    progress, places, other = [], [], None
    with closing(engine.calibrate("long", engine.vlm, 12, 0.003, stop)) as events:
        for event in events:
            if isinstance(event, Place):
                places.append(event)
            elif isinstance(event, CalibrationProgress):
                progress.append(event.measured)
                if other is None:
                    other = threading.Thread(target=ask)
                    other.start()
                    assert _until(lambda: engine.turns.waiting == 1)
                elif len(progress) == 2:
                    # It was its turn between the first sample and this one.
                    assert answered.is_set()
            else:
                assert isinstance(event, Calibration)
    assert progress[-1] == 12
    assert any(place.ahead for place in places)
    assert engine.calibration(engine.vlm) is not None
    other.join(30)


def test_what_cannot_be_known_is_said_and_not_measured_again(engine, analysis, picture):
    part = Part("patches")
    analysis.prompt = replace(analysis.prompt, shown=Clip((picture,) * 2, (0.0, 1.0), 2.0))
    for _ in range(2):
        with pytest.raises(UserError, match="Where in a clip each visual token lies isn't known"):
            list(engine.measure("a", analysis, part, threading.Event()))
    assert analysis.known(part) is None
    analysis.prompt = None
    with pytest.raises(UserError, match="Where in a clip each visual token lies isn't known"):
        analysis.of("patches")


def test_a_measurement_that_is_stopped_while_it_waits_is_never_made(engine, query, analysis):
    stop, part = threading.Event(), Part("sweep")
    with closing(compare(engine, query)) as events:
        next(events)
        steps = engine.measure("b", analysis, part, stop)
        assert next(steps).ahead == 1
        stop.set()
        with pytest.raises(StoppedError):
            next(steps)
    assert analysis.known(part) is None


def test_a_closed_engine_runs_nothing_more(engine, query):
    running = compare(engine, query)
    next(running)
    closer = threading.Thread(target=engine.close)
    closer.start()
    assert not [event for event in running if isinstance(event, Comparison)]
    closer.join(30)
    assert list(compare(engine, query, "b")) == []
    with pytest.raises(ValueError, match="stopped"):
        engine.compare_to_end("c", engine.vlm, query, threading.Event())


def _until(condition):
    waited = threading.Event()
    for _ in range(1000):
        if condition():
            return True
        waited.wait(0.01)
    return False
