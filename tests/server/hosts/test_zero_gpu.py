"""What needs the device on ZeroGPU runs within leases: the real package `spaces`, in a Space of its own."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

from tests.serving import free_port
from vtw_demo.comparison.analysis import Analysis, Part
from vtw_demo.comparison.calibration import CalibrationStore
from vtw_demo.comparison.compare import compare
from vtw_demo.comparison.follow_up import Turn
from vtw_demo.server.engine import Engine
from vtw_demo.server.hosts import this_machines

ROOT = Path(__file__).parents[3]
QUESTION = "What is the blue thing?"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the process of `zero_gpu_host.py` found."""
    pytest.importorskip("spaces")
    folder = tmp_path_factory.mktemp("zero-gpu")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("VTW_", "SPACES_"))}
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "tests/server/hosts/zero_gpu_host.py", str(folder / "found.json"), str(free_port())],
            cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            env=inherited | {"NOTE": str(folder / "note"), "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder)},
        )  # fmt: skip
    try:
        assert process.wait(240) == 0, log.read_text()
    finally:
        # The workers outlive it.
        os.killpg(process.pid, signal.SIGKILL)
    return json.loads((folder / "found.json").read_text())


@pytest.fixture
def picture():
    return Image.open(ROOT / "assets/examples/two-shapes.png")


def test_the_model_is_placed_before_the_page_is_served(found):
    assert found["device"] == "cuda:0"
    assert found["precision"] == "bfloat16"
    assert found["told at the start"] == ["/startup-report"]


def test_a_prompt_waits_for_its_lease_in_this_machines_memory(found):
    assert found["prompt waits on"] == ["cpu"]


def test_a_comparison_is_one_lease_for_as_long_as_its_work_takes_on_the_quota_of_who_asked(found):
    asked = [(path, parameters) for path, parameters in found["asked by a comparison"] if path != "/allow"]
    assert [path for path, _ in asked] == ["/schedule", "/release"]
    parameters = asked[0][1]
    assert parameters["token"].startswith("a.")
    assert 1 <= int(parameters["durationSeconds"]) <= 120
    assert asked[1][1]["fail"] == "false"


def test_a_comparison_gives_the_events_and_the_answers_that_it_gives_without_a_lease(found, vlm, picture):
    # On its GPU the Space's model is held in bfloat16: the words are compared, not the numbers.
    events = list(compare(vlm, picture, QUESTION, 9, 8))
    assert found["kinds"] == [type(event).__name__ for event in events]
    assert found["answers"] == [events[-1].full.answer, events[-1].withdrawn.answer]
    assert found["texts"] == [event.text for event in events if hasattr(event, "text")]


def test_what_a_lease_has_measured_stays_known(found):
    assert found["leases of what is known"] == 0
    assert QUESTION in json.dumps(found["analysis"])
    assert {name for name, row in found["analysis"].items() if "unknown" in (row or {})} == set()


def test_timings_answers_by_layer_and_calibrations_are_a_lease_each(found):
    assert found["rounds"] == [2, 2]
    assert [layer for layer, _ in found["answers at layers"]] == [3, 9]
    assert found["calibrated"] == [2, True]
    assert found["leases of three more"] == 3


def test_a_second_question_is_one_lease_and_is_answered_as_without(found, vlm, picture):
    there, (full, withdrawn) = found["second question"], found["tokens"]
    *_, here = compare(vlm, picture, there["question"], 9, 8, history=[Turn(QUESTION, tuple(full), tuple(withdrawn))])
    for run in ("full", "withdrawn", "fresh"):
        assert there[run]["answer"] == getattr(here, run).answer
    assert (there["tokens"], there["further_tokens"]) == (here.tokens, here.further_tokens)
    assert there["withdrawn"]["prefill_flops"] == here.withdrawn.prefill_flops
    assert found["it is kept"]
    assert found["leases of it"] == 1


def test_a_stop_is_seen_in_the_worker_and_so_is_the_end_of_the_iterator(found):
    assert found["after stop"] == ["too late"]
    assert found["note after stop"] == "stopped"
    assert found["note after close"] == "stopped"


def test_a_worker_is_another_process_and_is_used_again(found):
    assert len(found["workers"]) == 1
    assert found["own"] not in found["workers"]


def test_what_is_refused_in_a_lease_is_said_here_and_what_fails_there_fails_here(found):
    kind, sentence = found["refused"]
    assert kind == "UserError"
    assert "13" in sentence
    assert "99" in sentence
    assert found["raised MemoryError"] == ["MemoryError", "MemoryError"]
    for kind in ("ValueError", "KeyError"):
        assert found[f"raised {kind}"] == ["RuntimeError", kind]


def test_no_lease_is_asked_for_what_cannot_have_one(found):
    assert found["another model"] == (
        "On ZeroGPU a Space runs the model that it was started with, and 'embedded' is another one."
    )
    assert found["too long"].endswith("and a GPU is lent for 120 s at most: ask for less at once.")
    assert found["leases of these"] == 0


def test_a_used_up_quota_is_said_and_every_lease_is_given_back(found):
    assert found["without quota"].startswith("ZeroGPU quota exceeded: ")
    assert found["scheduled"] == found["released"] + 1  # the one that was refused


def test_elsewhere_nothing_is_leased_though_the_package_is_installed(vlm, picture, make_comparison, tmp_path):
    pytest.importorskip("spaces")
    host, engine = this_machines(), Engine(vlm, CalibrationStore(tmp_path))
    analysis, part = Analysis(vlm, vlm.prompt(picture, QUESTION), make_comparison()), Part("attention", "full")
    list(engine.measure("a", analysis, part, threading.Event()))
    assert analysis.known(part) is not None
    kinds = [type(event).__name__ for event in host.run(compare, vlm, 2, 8)(picture, QUESTION, 9, 8)]
    assert kinds[-1] == "Comparison"
