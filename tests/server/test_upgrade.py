"""The model that suits the machine, fetched from a real server beside the one that answers."""

import json
import shutil
import subprocess
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pytest

from tests import saved_models
from tests.hub_server import NOBODY, ask_hub, hub_server
from vtw_demo import load
from vtw_demo.comparison.calibration import CalibrationStore
from vtw_demo.comparison.compare import Comparison
from vtw_demo.errors import UserError
from vtw_demo.models import hardware
from vtw_demo.models.loading import EMBEDDED, LoadProgress, ModelChoice
from vtw_demo.models.registry import choose_model
from vtw_demo.server import upgrade as upgrade_module
from vtw_demo.server.engine import Engine
from vtw_demo.server.query import Query
from vtw_demo.server.queue import Place
from vtw_demo.server.switching import Switching
from vtw_demo.server.upgrade import GOES_ON, Upgrade, UpgradeState, in_words

SUITED, OTHER, GATED = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct", "Qwen/Qwen3-VL-2B-Instruct", "google/gemma-3-4b-it"
SECONDS = 60


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """What the hub has, by id: small ones by the names of the large."""
    smolvlm, qwen = tmp_path_factory.mktemp("smolvlm"), tmp_path_factory.mktemp("qwen")
    saved_models.save("smolvlm", smolvlm)
    saved_models.save("qwen3_vl", qwen)
    return {SUITED: smolvlm, OTHER: qwen, GATED: None}


@pytest.fixture
def half(models):
    """Half of the bytes of the weights, at which they stop."""
    return (models[SUITED] / "model.safetensors").stat().st_size // 2


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Sets which hub is asked."""
    return partial(ask_hub, monkeypatch, tmp_path / "hub")


@pytest.fixture
def engine(small_folder, tmp_path):
    """Of a small model in the place of the embedded one."""
    vlm = replace(load(str(small_folder), device="cpu"), name=EMBEDDED)
    engine = Engine(vlm, CalibrationStore.of(vlm, tmp_path / "cache"))
    yield engine
    engine.close()


@pytest.fixture
def upgrade(engine, small_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "accelerator", lambda: None)
    monkeypatch.setattr(hardware, "free_memory", lambda device: 16 * 10**9)
    switching = Switching(engine, ModelChoice(str(small_folder), device="cpu"), tmp_path / "cache")
    return Upgrade(switching, choose_model)


def until(upgrade, is_so):
    """The first state that is so."""
    deadline = time.monotonic() + SECONDS
    while not is_so(state := upgrade.state):
        assert time.monotonic() < deadline, state
        time.sleep(0.02)
    return state


def ended(upgrade):
    return until(upgrade, lambda state: not state.is_running)


def is_downloading(state):
    return "Downloading" in state.said


def answered(engine, picture):
    query = Query(picture, "What is shown?", 2, 4)
    *_, last = engine.compare("visitor", engine.vlm, query, query.prompt(engine.vlm))
    assert isinstance(last, Comparison)
    return last


def test_it_is_fetched_beside_the_one_that_answers_and_then_answers_itself(models, half, hub, engine, upgrade, picture):
    goes_on = threading.Event()
    assert upgrade.state == UpgradeState()
    with hub_server(models, breaks_at=half, goes_on=goes_on) as (address, _):
        hub(address)
        upgrade.begin()
        state = until(upgrade, is_downloading)
        assert f"Downloading {SUITED}: 0.00 of 0.00 GB, " in state.said
        assert state.said.endswith(" The embedded model answers meanwhile.")
        assert "B/s" in state.said
        assert (state.is_running, state.vlm) == (True, None)
        assert answered(engine, picture).model == EMBEDDED
        upgrade.begin()  # it goes on already
        goes_on.set()
        state = ended(upgrade)
    assert state.vlm is engine.vlm
    assert state.said == f"Now running {SUITED}: no GPU is used, and 4 GB of memory or more are free."
    assert answered(engine, picture).model == SUITED
    upgrade.begin()
    assert upgrade.state.vlm is engine.vlm


def test_its_rate_and_the_time_left_are_those_of_the_last_seconds():
    progress, loaded = LoadProgress("a/b", "downloading", 300_000_000, 1_020_000_000), deque()
    loaded.extend([(1000.0, 0), (1010.0, 100_000_000), (1020.0, 300_000_000)])
    assert in_words(progress, loaded, 1020.0) == "Downloading a/b: 0.30 of 1.02 GB, 20 MB/s, about 35 s left."
    # Too little has come to know how long it takes.
    soon = deque([(1000.0, 0), (1001.0, 300_000_000)])
    assert in_words(progress, soon, 1001.0) == "Downloading a/b: 0.30 of 1.02 GB, 300 MB/s."
    # Nothing comes any more.
    assert in_words(progress, loaded, 1080.0) == "Downloading a/b: 0.30 of 1.02 GB, 0 B/s."
    assert in_words(LoadProgress("a/b", "reading weights", 1, 4), loaded, 1080.0) == "Reading weights: a/b, 25 %."


def test_a_stop_in_the_middle_leaves_what_has_come_and_it_can_go_on(models, half, hub, engine, upgrade, picture):
    with hub_server(models, breaks_at=half, stalls=True) as (address, _):
        hub(address)
        upgrade.begin()
        until(upgrade, is_downloading)
        upgrade.stop()
        assert upgrade.state == UpgradeState(f"Stopped; what has come is kept. {GOES_ON}")
        assert answered(engine, picture).model == EMBEDDED
    with hub_server(models) as (address, _):
        hub(address)
        upgrade.begin()
        assert ended(upgrade).vlm is engine.vlm
    assert engine.vlm.name == SUITED


@pytest.mark.parametrize("goes_away", [True, False])
def test_a_download_that_breaks_off_is_said_and_can_go_on(models, half, hub, engine, upgrade, picture, goes_away):
    """The file ends too early; or nobody listens any more in its middle."""
    with hub_server(models, breaks_at=half, stalls=goes_away) as (address, _):
        hub(address)
        upgrade.begin()
        until(upgrade, is_downloading) if goes_away else ended(upgrade)
    state = ended(upgrade)
    assert state.said == (
        f"The download of '{SUITED}' broke off; what has come is kept. Check the network and try again. {GOES_ON}"
    )
    assert answered(engine, picture).model == EMBEDDED
    with hub_server(models) as (address, _):
        hub(address)
        upgrade.begin()
        assert ended(upgrade).vlm is engine.vlm


@pytest.fixture
def small_disk(tmp_path):
    folder, mount = tmp_path / "disk", shutil.which("mount")
    folder.mkdir()
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=512k", "none", folder]).returncode:
        pytest.skip("no small disk can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("fills_meanwhile", [False, True])
def test_a_full_disk_is_said(models, half, engine, upgrade, picture, small_disk, monkeypatch, fills_meanwhile):
    goes_on = threading.Event()
    with hub_server(models, breaks_at=half, goes_on=goes_on) as (address, _):
        ask_hub(monkeypatch, small_disk, address)
        room = 2 * half + 8192 if fills_meanwhile else half
        (small_disk / "filler").write_bytes(bytes(max(0, shutil.disk_usage(small_disk).free - room - 65536)))
        upgrade.begin()
        if fills_meanwhile:
            until(upgrade, is_downloading)
            (small_disk / "more").write_bytes(bytes(shutil.disk_usage(small_disk).free))
        goes_on.set()
        state = ended(upgrade)
    assert state.said == (
        f"The disk is full: the model '{SUITED}' doesn't fit into {small_disk}. Make room, or set HF_HOME to another "
        f"disk. {GOES_ON}"
    )
    assert answered(engine, picture).model == EMBEDDED


def test_out_of_reach_it_says_why_the_embedded_model_goes_on(hub, engine, upgrade):
    hub(NOBODY)
    upgrade.begin()
    state = ended(upgrade)
    assert (state.vlm, engine.vlm.name) == (None, EMBEDDED)
    why = f"The model '{SUITED}' is not, or not whole, in this machine's cache, and the hub ({NOBODY}) can't be reached"
    assert state.said.startswith(f"Running the embedded model, not {SUITED}: {why}: check the network")


def test_a_link_names_one_and_nothing_else_is_fetched(models, hub, upgrade):
    with hub_server(models) as (address, asked):
        hub(address)
        upgrade.begin(OTHER)
        state = ended(upgrade)
    assert (state.vlm.name, state.said) == (OTHER, f"Now running {OTHER}, which a link names.")
    assert not [path for path in asked if SUITED in path]


def test_what_a_link_names_may_be_refused(models, hub, engine, upgrade):
    with hub_server(models) as (address, _):
        hub(address)
        upgrade.begin(GATED)
        said = ended(upgrade).said
    assert said.startswith(f"The model '{GATED}' is gated: ask for access at ")
    assert said.endswith(GOES_ON)


def test_it_waits_for_the_run_in_hand_and_what_follows_it(models, hub, engine, upgrade, picture, tmp_path):
    query = Query(picture, "Describe the picture.", 6, 8)
    running = engine.compare("other", engine.vlm, query, query.prompt(engine.vlm))
    assert next(running) == Place(0)
    with hub_server(models) as (address, _):
        hub(address)
        upgrade.begin()
        until(upgrade, lambda state: list(tmp_path.glob("hub/*/snapshots/*/model.safetensors")))
        time.sleep(1.5)
        assert upgrade.state.vlm is None
        assert isinstance(list(running)[-1], Comparison)
        assert ended(upgrade).vlm is engine.vlm


def test_who_uses_the_model_all_the_time_is_not_waited_for(models, hub, engine, upgrade, picture, monkeypatch):
    monkeypatch.setattr(upgrade_module, "PATIENCE_SECONDS", 0.5)
    query, over = Query(picture, "Describe the picture.", 6, 8), threading.Event()

    def ask():
        while not over.is_set():
            with suppress(UserError):
                vlm = engine.vlm
                list(engine.compare("other", vlm, query, query.prompt(vlm)))

    busy = threading.Thread(target=ask)
    busy.start()
    try:
        with hub_server(models) as (address, _):
            hub(address)
            upgrade.begin()
            assert ended(upgrade).vlm is engine.vlm
    finally:
        over.set()
        busy.join()


def test_who_chose_another_meanwhile_keeps_it(models, half, hub, engine, upgrade):
    goes_on = threading.Event()
    with hub_server(models, breaks_at=half, goes_on=goes_on) as (address, _):
        hub(address)
        upgrade.begin()
        until(upgrade, is_downloading)
        chosen = load(str(models[OTHER]), device="cpu")
        engine.use(chosen, engine.store(chosen))
        goes_on.set()
        assert ended(upgrade).said == f"Meanwhile another model was chosen: {models[OTHER]}."
    assert engine.vlm is chosen


def test_what_cannot_be_loaded_leaves_the_embedded_one(models, hub, engine, upgrade, tmp_path, picture):
    broken = tmp_path / "broken"
    shutil.copytree(models[SUITED], broken)
    config = json.loads((broken / "config.json").read_text())
    config["text_config"]["intermediate_size"] += 8
    (broken / "config.json").write_text(json.dumps(config))
    with hub_server({SUITED: broken}) as (address, _):
        hub(address)
        upgrade.begin()
        state = ended(upgrade)
    assert f"The model '{SUITED}' can't be loaded" in state.said
    assert state.vlm is None
    assert answered(engine, picture).full.tokens
