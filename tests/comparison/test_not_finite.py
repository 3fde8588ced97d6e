"""Models that compute NaN or infinity: it is said wherever they are met, and nothing is made of it."""

import json
import shutil

import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import expect
from safetensors.torch import load_file, save_file

from tests import saved_models
from tests.page.test_browser import WAIT
from tests.serving import served
from vtw_demo import load, measure_attention, sweep
from vtw_demo.__main__ import main
from vtw_demo.comparison.analysis import MEASUREMENTS, Analysis
from vtw_demo.comparison.calibration import Calibration, CalibrationStore, calibrate
from vtw_demo.comparison.compare import Comparison, compare
from vtw_demo.comparison.repeated_timing import repeat_timing
from vtw_demo.comparison.samples import Sample
from vtw_demo.models.devices import check_finite
from vtw_demo.server.engine import Engine

SAID = "The model computes NaN or infinity, from which nothing follows, in "
DOWN = "language_model.model.layers.1.mlp.down_proj.weight"
GOOD, BAD = "What is this?", "What is this, z?"
"""The warm-up asks the first; the second has a token whose embedding is NaN in `model_folder`."""
LAYER = 2


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    saved_models.save("llava", folder)
    return folder


def changed(llava, folder, change):
    """A copy whose weights `change` changes in place."""
    shutil.copytree(llava, folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def model_folder(llava, tmp_path_factory):
    whole = load(str(llava), device="cpu")
    (z,) = whole.processor.tokenizer("z", add_special_tokens=False)["input_ids"]

    def change(weights):
        weights["language_model.model.embed_tokens.weight"][z] = float("nan")

    return changed(llava, tmp_path_factory.mktemp("nan") / "model", change)


@pytest.fixture(scope="module")
def broken(model_folder):
    return load(str(model_folder), device="cpu")


def one_nan(weights):
    weights[DOWN][0, 0] = float("nan")


def infinity(weights):
    weights[DOWN][0, 0] = float("inf")


def overflow(weights):
    for part in ("up", "down"):
        weights[DOWN.replace("down", part)] *= 1e30


def in_the_head(weights):
    weights["language_model.lm_head.weight"][7] = float("nan")


def in_the_projector(weights):
    weights["multi_modal_projector.linear_1.weight"] *= float("nan")


@pytest.mark.parametrize("quantization", [None, "8bit"])
@pytest.mark.parametrize("change", [one_nan, infinity, overflow, in_the_head, in_the_projector])
def test_a_model_that_computes_none_is_not_loaded(llava, tmp_path, change, quantization):
    folder = changed(llava, tmp_path / "model", change)
    with pytest.raises(ValueError, match=rf"can't be loaded: {SAID}(bfloat16|float32)\. Load it in .*damaged\."):
        load(str(folder), quantization, device="cpu")


def half(scale):
    """A model in float16 whose second layer adds so many times what it did."""
    model, processor = saved_models.build("llava")
    with torch.no_grad():
        model.get_decoder().layers[1].mlp.down_proj.weight *= scale
    picture = Image.new("RGB", (60, 60), "red")
    inputs = processor(images=[picture], text="<image> a", return_tensors="pt", add_special_tokens=False)
    inputs["pixel_values"] = inputs["pixel_values"].half()
    return model.half(), dict(inputs)


@pytest.mark.parametrize("measured", [sweep, measure_attention])
def test_a_model_of_ones_own_that_overflows_is_not_measured(measured):
    measured(*half(1))
    model, inputs = half(1e7)
    with pytest.raises(ValueError, match=rf"{SAID}float16\. Load it in bfloat16 or float32"):
        measured(model, inputs)


def test_rows_are_told_apart():
    logits = torch.zeros(3, 5)
    check_finite(logits, ["a", "b", "c"])
    check_finite(logits[:0])
    logits[1, 2] = -torch.inf
    with pytest.raises(ValueError, match=f"^b: {SAID}float32"):
        check_finite(logits, ["a", "b", "c"])
    check_finite(logits[::2])


def test_a_run_ends_with_a_sentence(broken, picture):
    for events in (
        compare(broken, picture, BAD, LAYER, max_new_tokens=4),
        repeat_timing(broken, broken.prompt(picture, BAD), LAYER, 2, 1),
    ):
        with pytest.raises(ValueError, match=f"^{SAID}"):
            next(events)
    *_, comparison = compare(broken, picture, GOOD, LAYER, max_new_tokens=4)
    assert isinstance(comparison, Comparison)


def test_a_run_ends_at_the_first_token_that_is_none(llava, picture):
    vlm = load(str(llava), device="cpu")
    *_, comparison = compare(vlm, picture, GOOD, LAYER, max_new_tokens=4)
    first = comparison.full.tokens[0]
    vlm.model.get_input_embeddings().weight.data[first] = float("nan")
    events = compare(vlm, picture, GOOD, LAYER, max_new_tokens=4)
    assert next(events).new_tokens == 1
    with pytest.raises(ValueError, match=f"^{SAID}"):
        next(events)


def test_nothing_is_measured_of_a_comparison(broken, picture, make_comparison):
    prompt = broken.prompt(picture, BAD)
    for name in ("attention", "attention_maps", "migration", "sweep", "probabilities"):
        assert name in MEASUREMENTS
        comparison = make_comparison(layer=LAYER)
        written = Analysis(broken, prompt, comparison).to_json()
        assert written[name]["unknown"].startswith(SAID), name


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_calibration_keeps_none(broken, picture, tmp_path, tokens):
    store = CalibrationStore(tmp_path)
    samples = [Sample("good", picture, GOOD, tokens), Sample("bad", picture, BAD, tokens)]
    events = calibrate(broken, samples, store=store)
    assert next(events).measured == 1
    with pytest.raises(ValueError, match=f"{SAID}"):
        next(events)
    assert list(store.measurements(broken.layers - 1)) == [samples[0].fingerprint]
    assert store.result() is None


def test_a_calibration_with_none_in_it_is_not_read(broken, picture):
    *_, result = calibrate(broken, [Sample("good", picture, GOOD)])
    written = json.loads(json.dumps(result.to_json()))
    assert Calibration.from_json(written) == result
    written["measurements"][0]["kl"][1] = float("nan")
    with pytest.raises(ValueError, match="no numbers"):
        Calibration.from_json(json.loads(json.dumps(written)))


@pytest.mark.parametrize(
    ("command", "early"), [("compare", True), ("calibrate", False), ("evaluate", False), ("evaluate", True)]
)
def test_commands_say_it(model_folder, command, early, picture, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    picture.save(tmp_path / "picture.png")
    questions = [BAD] if early else [GOOD] * 6 + [BAD]
    rows = [{"image": "picture.png", "question": question, "answer": "red"} for question in questions]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    of_data = ["--data", str(tmp_path / "data.jsonl"), "--out", str(tmp_path / "out")]
    asked = {
        "compare": ["--image", str(tmp_path / "picture.png"), "--question", BAD, "--layer", str(LAYER)],
        "calibrate": of_data,
        "evaluate": [*of_data, "--max-new-tokens", "2", "--batch-size", "2"],
    }
    assert main([command, "--model", str(model_folder), "--device", "cpu", *asked[command]]) == 2
    said = capsys.readouterr()
    last = said.err.splitlines()[-1]
    assert SAID in last
    assert last.startswith(f"error: data.jsonl, line {len(questions)}: " if command == "evaluate" else "error: "), last
    assert "Traceback" not in said.err
    assert "Prefill" not in said.out
    assert not (tmp_path / "out" / "calibration.json").exists()
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_the_page_and_the_api_say_it(broken, picture, browser, tmp_path):
    engine = Engine(broken, CalibrationStore(tmp_path))
    file = tmp_path / "picture.png"
    picture.save(file)
    with served(engine) as url:
        client = Client(url, verbose=False)
        for name in ("/compare", "/examine"):
            with pytest.raises(AppError, match=f"^{SAID}"):
                client.predict(handle_file(file), BAD, LAYER, 3, api_name=name)
        assert client.predict(handle_file(file), GOOD, LAYER, 3, api_name="/compare")["full"]["tokens"]
        page = browser.new_page()
        page.goto(url)
        verdict = page.locator(".verdict")
        expect(verdict).to_contain_text("answer", timeout=WAIT)
        page.get_by_label("Question").fill(BAD)
        page.get_by_label("Question").press("Enter")
        expect(verdict).to_contain_text(SAID, timeout=WAIT)
        assert page.locator(".verdict.problem").count() == 1
        page.close()
