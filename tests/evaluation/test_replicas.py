"""Questions spread over processes of a real Ray, whose workers are killed."""

import copy
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from vtw_demo.__main__ import main
from vtw_demo.errors import UserError
from vtw_demo.evaluation.answering import Request
from vtw_demo.evaluation.data import BUILT_IN
from vtw_demo.evaluation.evaluation import answer_here
from vtw_demo.evaluation.replicas import RETRIES, Replicas
from vtw_demo.evaluation.variants import FULL, Variant
from vtw_demo.models.loading import ModelChoice
from vtw_demo.models.ray_cluster import MISSING

VARIANTS = (FULL, Variant("withdrawn", 9))
WAIT_SECONDS = 120


@pytest.fixture(scope="module")
def cluster():
    """The address of a Ray of two CPUs; its processes are this one's children."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        started = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        yield started.address
        started.shutdown()


@pytest.fixture(scope="module", autouse=True)
def model(small):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BROWSER_PATH", "/no/such/browser")
        patch.setattr("vtw_demo.evaluation.command.load_model", lambda options: small)
        patch.setattr("vtw_demo.evaluation.evaluation.TIMED_PROMPTS", 1)
        patch.setattr("vtw_demo.evaluation.evaluation.TIMED_ROUNDS", 1)
        yield


@pytest.fixture(scope="module")
def command(small_folder):
    """Asks 40 questions, 4 of which go to a worker at once."""
    model = ["--model", str(small_folder), "--device", "cpu"]
    return ["evaluate", *model, "--data", "scenes", "--samples", "40", "--batch-size", "1", "--layers", "3", "9-12"]


@pytest.fixture(scope="module")
def plain(model, command, tmp_path_factory):
    """The answers without replicas."""
    out = tmp_path_factory.mktemp("plain")
    assert main([*command, "--out", str(out)]) == 0
    return answers(out)


def answers(out):
    """The lines that are in a file of answers so far, whole ones alone."""
    lines = [file.read_text().split("\n") for file in out.glob("answers-*.jsonl")]
    return [line for line in lines[0][:-1] if line] if lines else []


def waited_for(state):
    """Whether a state comes before long."""
    until = time.monotonic() + WAIT_SECONDS
    while not (found := state()) and time.monotonic() < until:
        time.sleep(0.01)
    return found


def answering():
    """Workers of this process' Ray that have questions in hand."""
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] == ["ray::Worker.answer"]:
                yield process
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue


@contextmanager
def killing(count):
    """So many workers are killed while they answer."""
    killed, ended = [], threading.Event()

    def kill():
        while len(killed) < count and not ended.is_set():
            for process in answering():
                if process.pid not in killed and len(killed) < count:
                    process.kill()
                    killed.append(process.pid)
            time.sleep(0.02)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()


@pytest.mark.ray
def test_an_evaluation_with_killed_workers_equals_the_one_without(cluster, command, plain, tmp_path, capsys):
    out = tmp_path / "spread"
    with killing(2) as killed:
        assert main([*command, "--out", str(out), "--replicas", "2", "--ray", cluster]) == 0
    assert len(killed) == 2
    assert answers(out) == plain
    assert "40 answered in" in capsys.readouterr().out


@pytest.mark.ray
def test_what_kills_each_worker_ends_the_evaluation(cluster, command, tmp_path, capsys):
    with killing(1000) as killed:
        assert main([*command, "--out", str(tmp_path), "--replicas", "1", "--ray", cluster]) == 2
    assert len(killed) >= 1 + RETRIES
    assert "error: A worker died again and again at the questions from 'scene 0' on" in capsys.readouterr().err


@pytest.mark.ray
def test_a_stopped_evaluation_goes_on_and_leaves_no_process(command, plain, cluster, tmp_path):
    out = tmp_path / "stopped"
    for stop, code in ((signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)):
        before = answers(out)
        process = subprocess.Popen(
            [sys.executable, "-m", "vtw_demo", *command, "--out", str(out), "--replicas", "2"],
            cwd=Path(__file__).parents[2],
            # Another Ray's address, which isn't asked for.
            env=os.environ | {"RAY_ADDRESS": "127.0.0.1:1"},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
        )
        try:
            assert waited_for(lambda before=before, process=process: len(answers(out)) > len(before) or process.poll())
            children = psutil.Process(process.pid).children(recursive=True)
            os.killpg(process.pid, stop)  # as a terminal does
            assert process.wait(WAIT_SECONDS) == code
            assert not psutil.wait_procs(children, WAIT_SECONDS)[1]
        finally:
            process.kill()
        kept = answers(out)
        assert len(before) < len(kept) < len(plain)
        assert kept == plain[: len(kept)]
    assert main([*command, "--out", str(out), "--replicas", "2", "--ray", cluster]) == 0
    assert answers(out) == plain


@pytest.mark.ray
def test_an_error_comes_after_the_answers_before_it(cluster, small, small_folder):
    first, second, third = BUILT_IN["scenes"](3, 0).samples
    samples = (first, replace(second, question="star " * 6000), third)
    requests = [Request([sample], VARIANTS, 8, 1, 0) for sample in samples]
    told, alone = [], answer_here(small, requests, lambda count: None)
    with Replicas(2, cluster, ModelChoice(str(small_folder)), "usual") as replicas:
        spread = replicas.answer(small, requests, told.append)
        assert next(spread) == next(alone)
        for found in (alone, spread):
            with pytest.raises(UserError, match=r"^The question is too long: with the picture and the answer it takes"):
                next(found)
    assert told == [2]


@pytest.mark.ray
def test_workers_that_hold_the_model_otherwise_are_refused(cluster, small, small_folder):
    requests = [Request(BUILT_IN["scenes"](1, 0).samples, VARIANTS, 8, 1, 0)]
    half = replace(small, model=copy.deepcopy(small.model).half())
    with Replicas(1, cluster, ModelChoice(str(small_folder)), "usual") as replicas:
        with pytest.raises(UserError, match=r"^A worker on .* and the command in float16"):
            replicas.answer(half, requests, lambda count: None)
        assert list(replicas.answer(small, [], lambda count: None)) == []


@pytest.mark.ray
def test_more_replicas_than_there_is_room_for(cluster, command, tmp_path, capsys):
    assert main([*command, "--out", str(tmp_path), "--replicas", "3", "--ray", cluster]) == 2
    said = "error: 3 replicas were asked for, and Ray has 2 CPUs: 2 fit, each with one of its own."
    assert said in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "No Ray cluster is at '127.0.0.1:1' (--ray): "),
        ("nonsense", "No Ray cluster is at 'nonsense' (--ray): "),
    ],
)
def test_where_no_ray_is(command, tmp_path, capsys, address, message):
    assert main([*command, "--out", str(tmp_path), "--replicas", "1", "--ray", address]) == 2
    assert message in capsys.readouterr().err


def test_without_ray(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # which import takes for a package that isn't there
    assert main([*command, "--out", str(tmp_path / "out"), "--replicas", "2"]) == 2
    assert f"error: {MISSING}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
