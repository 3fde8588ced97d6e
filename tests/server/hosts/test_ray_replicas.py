"""Two replicas of a small model on a real Ray of this machine: answers as alone, in turn, and whatever dies."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.server.hosts import ray_functions
from tests.server.hosts.replicas import SECONDS, asked, is_as_alone, is_replica, replica_processes, until
from vtw_demo.comparison.analysis import Analysis, all_parts
from vtw_demo.comparison.calibration import Calibration, CalibrationStore, calibrate
from vtw_demo.comparison.compare import Comparison, RunProgress, compare
from vtw_demo.comparison.samples import EMBEDDED_DATA, embedded_samples
from vtw_demo.errors import UserError
from vtw_demo.models.loading import LoadProgress
from vtw_demo.server.engine import LOST, Engine
from vtw_demo.server.hosts import chosen_host
from vtw_demo.server.hosts.ray_process import GONE
from vtw_demo.server.queue import Place
from vtw_demo.server.switching import STILL_THERE, Switching

pytestmark = pytest.mark.ray
pytest.importorskip("ray")
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def host(choice):
    host = chosen_host("2", None)
    yield host
    host.close()
    assert not replica_processes()


@pytest.fixture(scope="module")
def loaded(host, choice):
    return host.load(choice, lambda progress: None)


@pytest.fixture
def engine(host, loaded, tmp_path):
    until(lambda: len(replica_processes()) == 2)
    return Engine(loaded, CalibrationStore(tmp_path), host=host)


def test_the_page_knows_the_model_without_its_weights(loaded, small):
    names = ("name", "layers", "precision", "quantized", "memory_bytes", "revision", "details", "context", "sampling")
    assert [getattr(loaded, name) for name in names] == [getattr(small, name) for name in names]
    assert all(weights.is_meta for weights in loaded.model.parameters())
    assert (str(loaded.device), loaded.place) == ("cpu", "cpu, which 2 replicas share")


def test_each_has_its_share_of_the_processors(engine):
    cores = max(os.cpu_count(), 2)
    assert list(engine.host.run(ray_functions.threads_of, engine.vlm, 1)()) == [cores // 2]


def test_visitors_at_once_are_answered_as_alone(engine, query, alone):
    layers = {f"visitor {number}": 1 + number % 3 for number in range(8)}

    def ask(visitor):
        *_, comparison = asked(engine, replace(query, layer=layers[visitor]), visitor)
        return comparison

    with ThreadPoolExecutor(8) as visitors:
        comparisons = dict(zip(layers, visitors.map(ask, layers), strict=True))
    assert {comparison.full.tokens for comparison in comparisons.values()} == {alone.full.tokens}
    assert {visitor: comparison.layer for visitor, comparison in comparisons.items()} == layers
    assert is_as_alone(next(of for of in comparisons.values() if of.layer == query.layer), alone)
    assert {comparison.device for comparison in comparisons.values()} == {"cpu, which 2 replicas share"}


def test_two_run_at_once_and_turns_stay_fair(engine, tmp_path):
    """Of four turns that one visitor asks for, those that haven't begun come after another visitor's."""
    begun, turns = [], engine.turns

    def hold(visitor, number):
        with turns.asked(visitor, "comparison") as turn:
            list(turn.wait())
            events = engine.host.run(ray_functions.patient, engine.vlm, 1)(tmp_path / str(number))
            begun.append((visitor, number, next(events)))
            assert list(events) == ["done"]

    threads = []
    for number, visitor in enumerate("aaaab"):
        threads.append(threading.Thread(target=hold, args=(visitor, number)))
        threads[-1].start()
        until(lambda number=number: turns.waiting + len(begun) > number)
    assert {number for _, number, _ in begun} == {0, 1}
    assert len({process for *_, process in begun}) == 2, "each on a replica of its own"
    (tmp_path / "0").touch()
    until(lambda: len(begun) == 3)
    assert begun[2][:2] == ("b", 4)
    for number in range(1, 5):
        (tmp_path / str(number)).touch()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()
    assert len(begun) == 5


def test_a_stop_ends_it_by_itself_and_closing_ends_it_too(engine, query, tmp_path, alone):
    stop, note = threading.Event(), tmp_path / "note"
    run = engine.host.run(ray_functions.stubborn, engine.vlm, 1)(note, stop=stop)
    assert next(run) in replica_processes()
    stop.set()
    assert list(run) == ["its last words"]
    assert note.read_text() == "stopped"
    note.unlink()
    run = engine.host.run(ray_functions.stubborn, engine.vlm, 1)(note, stop=threading.Event())
    next(run)
    run.close()
    until(note.exists)
    assert until(note.read_text) == "stopped"
    stop = threading.Event()
    for event in asked(engine, query, stop=stop):
        if isinstance(event, RunProgress) and event.new_tokens == 3:
            stop.set()
    assert isinstance(event, RunProgress)
    assert event.is_stopped
    *_, comparison = asked(engine, query)
    assert is_as_alone(comparison, alone)


def test_what_goes_wrong_there_is_raised_here(engine):
    raised = {}
    for kind in (UserError, MemoryError, KeyError):
        with pytest.raises(Exception) as caught:  # noqa: PT011
            list(engine.host.run(ray_functions.fails, engine.vlm, 1)(kind))
        raised[kind] = type(caught.value), str(caught.value)
    assert raised == {
        UserError: (UserError, "a sentence for people"),
        MemoryError: (MemoryError, "MemoryError"),
        KeyError: (RuntimeError, "KeyError"),
    }


def test_what_is_measured_is_as_alone(engine, small, query, alone):
    *_, comparison = asked(engine, query)
    there, here = (
        Analysis(engine.vlm, query.prompt(engine.vlm), comparison),
        Analysis(small, query.prompt(small), alone),
    )
    for part in all_parts(comparison):
        list(engine.measure("b", there, part, threading.Event()))
    measured, expected = there.to_json(), here.to_json()
    assert {name: of.keys() for name, of in measured.items() if isinstance(of, dict)} == {
        name: of.keys() for name, of in expected.items() if isinstance(of, dict)
    }
    assert (measured["patches"], measured["staircase"]) == (expected["patches"], expected["staircase"])
    assert measured["sweep"]["kl"] == pytest.approx(expected["sweep"]["kl"], abs=1e-5)
    rounds = [of.rounds for of in engine.repeat_timing("b", there, 3, threading.Event()) if not isinstance(of, Place)]
    assert rounds == [1, 2, 3]
    answers = engine.answer_at_layers("b", engine.vlm, there.prompt, (1, 2), comparison.full, 8, threading.Event())
    assert [answer.layer for answer in answers if not isinstance(answer, Place)] == [1, 2]


def test_a_second_question_is_answered_as_alone(engine, small, query, alone):
    *_, comparison = asked(engine, query)
    analysis = Analysis(engine.vlm, query.prompt(engine.vlm), comparison)
    *_, there = engine.ask_on("a", analysis, "How many things are there?", 8, threading.Event())
    *_, here = compare(small, query.picture, there.question, query.layer, 8, history=alone)
    for run in ("full", "withdrawn", "fresh"):
        assert getattr(there, run).tokens == getattr(here, run).tokens
    assert (there.history, there.tokens, there.is_enough) == (here.history, here.tokens, here.is_enough)
    assert there.withdrawn.kv_cache_bytes == here.withdrawn.kv_cache_bytes < there.fresh.kv_cache_bytes
    assert analysis.follow_up is there


def test_a_calibration_uses_both_and_is_as_alone(engine, small):
    *_, expected = calibrate(small, embedded_samples(8), 0.003, EMBEDDED_DATA)
    *progress, calibration = engine.calibrate("a", engine.vlm, 8, 0.003, threading.Event())
    assert isinstance(calibration, Calibration)
    assert calibration.samples == expected.samples
    for measured, wanted in zip(calibration.measurements, expected.measurements, strict=True):
        assert measured.kl == pytest.approx(wanted.kl, abs=1e-5)
    assert sorted(event.measured for event in progress if not isinstance(event, Place)) == list(range(1, 9))


@pytest.mark.parametrize("once", ["once", "and once more"])
def test_a_killed_replica_is_survived(engine, query, alone, once):
    """Both are killed: whichever runs it. The run is made again from its start."""
    events, lost = [], False
    for event in asked(engine, query):
        events.append(event)
        if isinstance(event, RunProgress) and not lost:
            lost = True
            for process in replica_processes():
                os.kill(process, signal.SIGKILL)
    again = events.index(Place(0, why=LOST))
    assert next(event.new_tokens for event in events[again:] if isinstance(event, RunProgress)) == 1
    assert is_as_alone(events[-1], alone)


def test_one_that_is_killed_leaves_the_other_run_alone(engine, query, alone, tmp_path):
    run = engine.host.run(ray_functions.stubborn, engine.vlm, 1)
    stop = threading.Event()
    with closing(run(tmp_path / "note", stop=stop)) as first:
        process = next(first)
        events = asked(engine, query)
        assert next(events) == Place(0)
        os.kill(process, signal.SIGKILL)
        assert is_as_alone(list(events)[-1], alone)
        with pytest.raises(UserError, match="lost twice"):
            list(first)


def test_a_run_that_is_lost_twice_is_said(engine, query):
    def killed():
        for event in asked(engine, query):
            if isinstance(event, RunProgress):
                for process in replica_processes():
                    os.kill(process, signal.SIGKILL)

    with pytest.raises(UserError, match="What ran this was lost twice: ask again"):
        killed()
    *_, comparison = asked(engine, query)
    assert isinstance(comparison, Comparison)


def test_answers_by_layer_go_on_where_they_were_lost(engine, query, alone):
    events = []
    prompt = query.prompt(engine.vlm)
    for event in engine.answer_at_layers("a", engine.vlm, prompt, (1, 2, 3), alone.full, 16, threading.Event()):
        events.append(event)
        if len([answer for answer in events if not isinstance(answer, Place)]) == 1 and len(events) < 3:
            for process in replica_processes():
                os.kill(process, signal.SIGKILL)
    assert [answer.layer for answer in events if not isinstance(answer, Place)] == [1, 2, 3]


def test_one_that_hangs_is_replaced(engine, query, alone):
    events, stopped = [], set()
    for event in asked(engine, query):
        events.append(event)
        if isinstance(event, RunProgress) and not stopped:
            stopped = replica_processes()
            for process in stopped:
                os.kill(process, signal.SIGSTOP)
    assert Place(0, why=LOST) in events
    assert is_as_alone(events[-1], alone)
    for process in stopped & replica_processes():  # Ray leaves it at that
        os.kill(process, signal.SIGKILL)


def test_a_switch_reaches_all_or_none(engine, choice, tmp_path, query, small, alone):
    before = engine.vlm
    switching = Switching(engine, choice, tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in Path(choice.name).iterdir():
        content = file.read_bytes()
        (broken / file.name).write_bytes(content[:-5000] if file.suffix == ".safetensors" else content)
    with pytest.raises(UserError, match=STILL_THERE):
        list(switching.put("a", replace(choice, name=str(broken)), threading.Event()))
    assert is_as_alone(list(asked(engine, query))[-1], alone)
    events = list(switching.put("a", replace(choice, quantization="4bit"), threading.Event()))
    assert any(isinstance(event, LoadProgress) for event in events)
    assert (engine.vlm.precision, before.precision) == ("4-bit", small.precision)
    with ThreadPoolExecutor(2) as visitors:
        answers = list(visitors.map(lambda visitor: list(asked(engine, query, visitor))[-1], ("a", "b")))
    assert {answer.precision for answer in answers} == {"4-bit"}
    list(switching.put("a", choice, threading.Event()))
    assert is_as_alone(list(asked(engine, query))[-1], alone)


def test_without_ray_the_page_says_so_and_comes_back_with_it(engine, query, alone):
    children = psutil.Process().children(recursive=True)
    (raylet,) = [child.pid for child in children if child.name() == "raylet"]
    os.kill(raylet, signal.SIGKILL)

    def answered():
        try:
            return list(asked(engine, query))[-1]
        except UserError as error:
            said.add(str(error))
        return None

    said = set()
    until(lambda: answered() is None)
    assert is_as_alone(until(answered), alone)
    assert GONE in said
    until(lambda: len(replica_processes()) == 2)


def test_nothing_is_left_of_a_page_that_is_killed(choice):
    program = (
        "from vtw_demo.server.hosts import chosen_host\nfrom vtw_demo.models.loading import ModelChoice\n"
        f"host = chosen_host('1', None)\nhost.load(ModelChoice({choice.name!r}, device='cpu'), print)\n"
        "print('there', flush=True)\ninput()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        until(lambda: process.stdout.readline() == "there\n")
        left = psutil.Process(process.pid).children(recursive=True)
        assert any(is_replica(child) for child in left)
        process.kill()
    psutil.wait_procs(left, SECONDS)
    assert not [child for child in left if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
