"""Another model in place of the one that is loaded: through the engine, and on a real page with a real server's hub."""

import json
import math
import re
import shutil
import signal
import threading
import urllib.request
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import saved_models
from tests.hub_server import COMMIT, NOBODY, ask_hub, hub_server
from tests.serving import started
from vtw_demo import load
from vtw_demo.comparison.analysis import Part
from vtw_demo.comparison.calibration import CalibrationStore
from vtw_demo.comparison.compare import Comparison
from vtw_demo.models.loading import EMBEDDED, EMBEDDED_FOLDER, LoadProgress, ModelChoice, load_choice
from vtw_demo.models.registry import KNOWN_MODELS
from vtw_demo.server.engine import Engine
from vtw_demo.server.query import Query
from vtw_demo.server.queue import Place, StoppedError
from vtw_demo.server.switching import Switching

ROOT = Path(__file__).parents[2]
HEAD = "language_model.lm_head.weight"
STILL_THERE = "The model that was loaded is still there."


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """What the hub has, by id."""
    llava, cross, cut = (tmp_path_factory.mktemp(name) for name in ("llava", "cross", "cut"))
    saved_models.save("llava", llava)
    generation = json.loads((llava / "generation_config.json").read_text())
    # Its answers end after a few tokens.
    (llava / "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": list(range(0, 256, 3))}))
    shutil.copytree(llava, cut, dirs_exist_ok=True)
    weights = next(cut.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-5000])
    shutil.copytree(llava, cross, dirs_exist_ok=True)
    (cross / "config.json").write_text('{"model_type": "mllama", "architectures": ["MllamaForConditionalGeneration"]}')
    lost, nan = (tmp_path_factory.mktemp(name) for name in ("lost", "nan"))
    held = load_file(llava / "model.safetensors")
    head = held.pop(HEAD).fill_(math.nan)
    for folder, weights in ((lost, held), (nan, held | {HEAD: head})):
        shutil.copytree(llava, folder, dirs_exist_ok=True)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return {
        "some/lost": lost,
        "some/nan": nan,
        "some/llava": llava,
        "some/cross": cross,
        "some/cut": cut,
        "some/gated": None,
    }


@pytest.fixture
def hub(models, monkeypatch, tmp_path):
    with hub_server(models) as (address, _):
        ask_hub(monkeypatch, tmp_path / "hub", address)
        yield


@pytest.fixture(scope="module")
def own(small_folder):
    """The name of the model that is there first."""
    return str(small_folder)


@pytest.fixture
def switching(own, tmp_path):
    """That model, loaded for this test alone: it is released."""
    vlm, cache = load(own, device="cpu"), tmp_path / "cache"
    return Switching(Engine(vlm, CalibrationStore.of(vlm, cache)), ModelChoice(own, device="cpu"), cache)


def switched(switching, name, quantization="none", stop=None):
    return list(switching.switch("visitor", name, quantization, stop or threading.Event()))


def answered(engine, picture):
    query = Query(picture, "What is shown?", 2, 4)
    *_, last = engine.compare("visitor", engine.vlm, query, query.prompt(engine.vlm))
    assert isinstance(last, Comparison)
    return last


def test_another_model_answers_and_the_one_before_is_gone(hub, switching, own, picture):
    engine, before = switching.engine, switching.engine.vlm
    store = engine.store(before)
    list(engine.calibrate("visitor", before, 1, 0.003, threading.Event()))
    assert engine.calibration(before) is not None
    query = Query(picture, "What is shown?", 2, 4)
    analysis = engine.compare_to_end("visitor", before, query, threading.Event())
    prompt = analysis.prompt
    events = switched(switching, "some/llava", "4bit")
    steps = [event.step for event in events if isinstance(event, LoadProgress)]
    assert Place(0) in events
    assert [step for number, step in enumerate(steps) if step not in steps[:number]][-1] in (
        "reading weights",
        "warming up",
    )
    after = engine.vlm
    assert (after.name, after.precision, after.revision) == ("some/llava", "4-bit", COMMIT)
    assert (engine.calibration(after), engine.store(after).folder == store.folder) == (None, False)
    assert sum(p.numel() for p in before.model.parameters()) == 0, "its memory is given back"
    assert answered(engine, picture).model == "some/llava"
    for steps in (
        engine.compare("late", before, query, prompt),
        engine.measure("late", analysis, Part("sweep"), threading.Event()),
        engine.answer_at_layers("late", before, prompt, (1, 2), analysis.comparison.full, 4, threading.Event()),
    ):
        with pytest.raises(ValueError, match="has been switched since this was asked: ask again"):
            list(steps)
    switched(switching, own)
    assert (engine.vlm.name, engine.vlm.layers) == (own, before.layers)
    switched(switching, EMBEDDED)
    assert (engine.vlm.name, engine.vlm.layers) == (EMBEDDED, 13)


@pytest.mark.parametrize("name", ["some/lost", "some/nan"])
def test_what_cannot_be_measured_is_not_switched_to(hub, switching, own, picture, name):
    before = answered(switching.engine, picture)
    with pytest.raises(ValueError, match=f"'{name}' can't be loaded: .*(lm_head.weight|NaN).* {STILL_THERE}"):
        switched(switching, name)
    assert switching.engine.vlm.name == own
    assert answered(switching.engine, picture).full.tokens == before.full.tokens


def test_it_is_loaded_in_a_turn_of_its_own(hub, switching, picture):
    """Neither begins while a comparison runs, nor does one begin while a model is loaded."""
    engine = switching.engine
    before = engine.vlm
    query = Query(picture, "Describe the picture.", 6, 8)
    running = engine.compare("other", before, query, query.prompt(before))
    assert next(running) == Place(0)
    switch = switching.switch("visitor", "some/llava", "none", threading.Event())
    for event in switch:
        if isinstance(event, Place):
            break
    assert event.ahead == 1
    assert engine.vlm is before
    assert isinstance(list(running)[-1], Comparison)
    list(switch)
    assert engine.vlm.name == "some/llava"


@pytest.mark.parametrize(
    ("name", "quantization", "said"),
    [
        ("some/gated", "none", "is gated: ask for access"),
        ("some/nothing", "none", "There is no model 'some/nothing' on the hub"),
        ("some/cross", "none", "cross-attention"),
        ("some/cut", "none", "can't be loaded"),
        ("some/llava", "3bit", "Unknown quantization '3bit'"),
        (str(EMBEDDED_FOLDER), "none", "no id of the Hugging Face hub"),
        ("assets/embedded", "none", "no id of the Hugging Face hub"),
        ("../" * 9 + "etc", "none", "no id of the Hugging Face hub"),
        ("", "none", "no id of the Hugging Face hub"),
    ],
)
def test_what_cannot_be_loaded_leaves_the_one_that_was(hub, switching, picture, monkeypatch, name, quantization, said):
    monkeypatch.chdir(ROOT)
    before = answered(switching.engine, picture)
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        switched(switching, name, quantization)
    assert str(caught.value).endswith(STILL_THERE)
    assert "\n" not in str(caught.value)
    after = answered(switching.engine, picture)
    assert (after.model, after.full.tokens) == (before.model, before.full.tokens)


def test_without_a_network_the_one_that_was_is_still_there(switching, own, picture, monkeypatch, tmp_path):
    ask_hub(monkeypatch, tmp_path / "hub", NOBODY)
    with pytest.raises(ValueError, match=rf"can't be reached.*{STILL_THERE}"):
        switched(switching, "some/llava")
    assert answered(switching.engine, picture).model == own


def test_too_little_memory_is_said_before_anything_is_freed(hub, switching, monkeypatch):
    before = switching.engine.vlm
    monkeypatch.setattr("vtw_demo.models.hardware.free_memory", lambda device: 1000 - before.memory_bytes)
    with pytest.raises(ValueError, match=rf"needs about .* of memory on cpu, .*{STILL_THERE}"):
        switched(switching, "some/llava")
    assert switching.engine.vlm is before


def test_memory_that_runs_out_while_loading_brings_the_one_before_back(hub, switching, own, picture, monkeypatch):
    asked = []

    def short(choice, *arguments):
        asked.append(choice.name)
        if choice.name == "some/llava":
            torch.empty(2**60, dtype=torch.uint8)
        return load_choice(choice, *arguments)

    monkeypatch.setattr("vtw_demo.server.hosts.this_process.load_choice", short)
    with pytest.raises(ValueError, match=STILL_THERE):
        switched(switching, "some/llava")
    assert asked == ["some/llava", own]
    assert answered(switching.engine, picture).model == own


def test_a_stop_or_a_visitor_who_leaves_brings_the_one_before_back(hub, switching, own, picture):
    stop = threading.Event()
    events = switching.switch("visitor", "some/llava", "none", stop)
    while not isinstance(next(events), Place):
        pass
    stop.set()
    with pytest.raises(StoppedError):
        list(events)
    assert answered(switching.engine, picture).model == own
    left = switching.switch("visitor", "some/llava", "none", threading.Event())
    for event in left:
        if isinstance(event, LoadProgress) and event.step == "reading weights":
            break
    left.close()
    assert answered(switching.engine, picture).model in (own, "some/llava"), "whichever it is, it is whole"


def opened(browser, url):
    page = browser.new_page(viewport={"width": 1440, "height": 1000})
    page.goto(url)
    page.locator("#attention .js-plotly-plot").wait_for(timeout=120_000)
    return page


def choose(page, name):
    if page.locator("#load-model").bounding_box()["x"] < 0:  # the sidebar is closed
        page.get_by_role("button", name="Toggle Sidebar").click()
    page.locator("#model-name input").fill(name)
    page.keyboard.press("Enter")
    page.locator("#load-model").click()


def has_text(page, selector, text, seconds=60):
    page.locator(selector).filter(has_text=text).wait_for(timeout=seconds * 1000)


def test_two_visitors_and_a_server_killed_in_the_middle(browser, models, own, tmp_path):
    """The visitor who switches sees it happen, the other is told; what a killed download leaves is never read."""
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    largest = next(models["some/llava"].glob("*.safetensors"))
    with (
        hub_server(models, breaks_at=largest.stat().st_size // 2, stalls=True) as (address, _),
        started(tmp_path, "--model", own, HF_ENDPOINT=address, **environment) as (url, process, _),
    ):
        page = opened(browser, url)
        choose(page, "some/llava")
        has_text(page, "#verdict", "Downloading some/llava")
        process.send_signal(signal.SIGKILL)
        page.close()
    with (
        hub_server(models) as (address, _),
        started(tmp_path, "--model", own, HF_ENDPOINT=address, **environment) as (url, _, _),
    ):
        page, other = opened(browser, url), opened(browser, url)
        choose(page, "some/gated")
        has_text(page, "#verdict", "is gated")
        has_text(page, "#verdict", STILL_THERE)
        choose(page, "some/llava")
        has_text(page, ".header", "some/llava")
        has_text(other, "#note", "Another visitor has switched the model: this page now asks some/llava")
        layers = load(str(models["some/llava"]), device="cpu").layers
        for one in (page, other):
            has_text(one, ".header", f"{layers} decoder layers")
            assert one.locator("#layer input[type=range]").get_attribute("max") == str(layers)
            one.get_by_role("button", name="Which K").click()
            one.get_by_role("tab", name="Every K").click()
            assert one.locator("#last-layer input").input_value() == str(layers - 1)
        other.locator("#run").click()
        has_text(other, ".header", "visual tokens")
        other.locator("#note").wait_for(state="hidden")
        assert "model=some%2Fllava" in other.url
        newcomer = opened(browser, url)
        has_text(newcomer, ".header", "some/llava")
        for one in (page, other, newcomer):
            one.close()


def test_what_is_known_of_a_model_is_said_before_it_is_chosen(page):
    page.get_by_role("button", name="Toggle Sidebar").click()
    for known in (KNOWN_MODELS[0], KNOWN_MODELS[-1]):
        page.locator("#model-name input").fill(known.name)
        page.keyboard.press("Enter")
        has_text(page, "#model-facts", f"{known.layers} decoder layers")
        has_text(page, "#model-facts", f"It starts at K = {known.layer}")
    page.locator("#model-name input").fill("some/other")
    page.keyboard.press("Enter")
    has_text(page, "#model-facts", "not among the models that are known to work")


def test_a_page_that_stays_with_its_model_has_no_such_sidebar(server, own, tmp_path):
    def offered(url):
        config = urllib.request.urlopen(f"{url}/config", timeout=10).read().decode()
        kinds = [part["type"] for part in json.loads(config)["components"]]
        return "sidebar" in kinds, "load-model" in config

    assert offered(server) == (True, True)
    with started(tmp_path, "--model", own, "--no-model-switching") as (url, _, _):
        assert offered(url) == (False, False)
