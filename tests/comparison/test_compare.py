import io
import json
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from vtw_demo import compare, load, prune, withdraw
from vtw_demo.comparison.compare import Comparison, RunFinished, RunProgress
from vtw_demo.errors import UserError
from vtw_demo.measurements.equal_flops import RIVALS
from vtw_demo.models import loading

QUESTION = "Describe the picture."


def hooks(vlm):
    return [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in vlm.model.modules()]


@pytest.mark.parametrize("layer", [1, 6, 13])
def test_both_runs_are_what_generate_gives(vlm, picture, layer):
    *_, comparison = compare(vlm, picture, QUESTION, layer, max_new_tokens=12)
    inputs = vlm.prepare(picture, QUESTION)
    length = inputs["input_ids"].shape[1]
    full = vlm.generate(**inputs, max_new_tokens=12, return_dict_in_generate=True)
    with withdraw(vlm.model, layer):
        withdrawn = vlm.generate(**inputs, max_new_tokens=12, return_dict_in_generate=True)
    for run, output in ((comparison.full, full), (comparison.withdrawn, withdrawn)):
        assert list(run.tokens) == output.sequences[0, length:].tolist()
        cache = output.past_key_values
        assert run.kv_cache_bytes == sum(kept.keys.nbytes + kept.values.nbytes for kept in cache.layers)
    assert comparison.visual_tokens + comparison.text_tokens == length
    assert comparison.same_answer == (comparison.first_difference is None)
    if layer == 13:
        assert comparison.same_answer
        assert comparison.full.prefill_flops == comparison.withdrawn.prefill_flops
    else:
        assert comparison.withdrawn.prefill_flops < comparison.full.prefill_flops
        assert comparison.withdrawn.kv_cache_bytes < comparison.full.kv_cache_bytes


@pytest.mark.parametrize("beside", [*RIVALS, "2:fastv:0.5;6:withdraw"])
def test_a_third_run_is_what_generate_gives_beside(vlm, picture, beside):
    before = hooks(vlm)
    *_, last = events = list(compare(vlm, picture, QUESTION, 6, max_new_tokens=8, beside=beside))
    assert [event.run for event in events if isinstance(event, RunFinished)] == ["full", "withdrawn", "beside"]
    inputs = vlm.prepare(picture, QUESTION)
    with prune(vlm.model, last.recipe):
        output = vlm.generate(**inputs, max_new_tokens=8, return_dict_in_generate=True)
    assert list(last.beside.tokens) == output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in output.past_key_values.layers)
    assert last.beside.kv_cache_bytes == held
    if beside in RIVALS:
        assert last.beside.prefill_flops == pytest.approx(last.withdrawn.prefill_flops, rel=0.01)
        assert all(step.split(":")[1] == beside for step in last.recipe.split(";"))
    else:
        assert last.recipe == beside
        assert last.beside.prefill_flops < last.withdrawn.prefill_flops
    assert json.loads(json.dumps(last.to_json()))["beside"]["tokens"] == list(last.beside.tokens)
    assert hooks(vlm) == before


@pytest.mark.parametrize(
    ("beside", "layer", "said"),
    [
        ("vtw", 6, "one of fastv, pyramid_drop, random_tokens, uniform_grid can run, or a recipe.*this is 'vtw'"),
        ("2:fastv", 6, "'2:fastv' is no step of a recipe"),
        ("13:fastv:0.5", 6, "layer of fastv must be from 1 to 12"),
        ("fastv", 1, "can't save as much as withdrawal at K = 1"),
    ],
)
def test_what_cant_run_beside_is_told_before_anything_runs(vlm, picture, beside, layer, said):
    with pytest.raises(UserError, match=said):
        compare(vlm, picture, QUESTION, layer, beside=beside)


def test_events_come_token_by_token_and_full_first(vlm, picture):
    events = list(compare(vlm, picture, QUESTION, 6, max_new_tokens=5))
    runs = [event.run for event in events if not isinstance(event, Comparison)]
    assert runs == sorted(runs)
    for run in ("full", "withdrawn"):
        texts = [event for event in events if isinstance(event, RunProgress) and event.run == run]
        (finished,) = [event for event in events if isinstance(event, RunFinished) and event.run == run]
        assert [event.new_tokens for event in texts] == list(range(1, len(finished.result.tokens) + 1))
        assert texts[-1].text == finished.result.answer
    assert isinstance(events[-1], Comparison)


def test_a_comparison_is_plain_data(vlm, picture):
    *_, comparison = compare(vlm, picture, QUESTION, 6, max_new_tokens=3)
    data = json.loads(json.dumps(comparison.to_json()))
    assert {"layer", "layers", "visual_tokens", "text_tokens", "full", "withdrawn"} <= set(data)
    for run in ("full", "withdrawn"):
        assert data[run]["total_ms"] == pytest.approx(
            data[run]["encode_ms"]
            + data[run]["prefill_ms"]
            + (data[run]["decode_ms_per_token"] or 0) * (len(data[run]["tokens"]) - 1)
        )
        assert data[run]["peak_memory_bytes"] is None


def test_an_earlier_full_run_is_not_made_again(vlm, picture):
    *_, first = compare(vlm, picture, QUESTION, 6, max_new_tokens=3)
    events = list(compare(vlm, picture, QUESTION, 9, max_new_tokens=3, full=first.full))
    assert all(event.run == "withdrawn" for event in events[:-1])
    assert events[-1].full is first.full


def test_stop_ends_within_a_token_and_leaves_the_model_clean(vlm, picture):
    before = hooks(vlm)
    stop = threading.Event()
    events = []
    for event in compare(vlm, picture, QUESTION, 6, max_new_tokens=200, stop=stop):
        events.append(event)
        if len(events) == 2:
            stop.set()
    assert len(events) <= 4
    assert events[-1].is_stopped
    assert (events[-1].text, events[-1].new_tokens) == (events[-2].text, events[-2].new_tokens)
    assert not any(isinstance(event, RunFinished | Comparison) for event in events)
    assert hooks(vlm) == before
    assert isinstance(list(compare(vlm, picture, QUESTION, 6, max_new_tokens=2))[-1], Comparison)


def test_a_closed_iterator_frees_the_model(vlm, picture):
    before = hooks(vlm)
    events = compare(vlm, picture, QUESTION, 6, max_new_tokens=200)
    next(events)
    events.close()
    assert hooks(vlm) == before
    assert not [t for t in threading.enumerate() if t.name.startswith("withdrawal")]


def test_an_exception_inside_a_layer_reaches_the_reader_and_frees_the_model(vlm, picture):
    before = hooks(vlm)

    def fail(*_):
        raise RuntimeError("the layer broke")

    hook = vlm.model.get_decoder().layers[3].register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="the layer broke"):
            list(compare(vlm, picture, QUESTION, 6))
    finally:
        hook.remove()
    assert hooks(vlm) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"question": " "}, "question is empty"),
        ({"layer": 0}, "this is 0"),
        ({"layer": 14}, "from 1 to 13"),
        ({"max_new_tokens": 0}, "this is 0"),
        ({"max_new_tokens": 10**9}, "this is 1000000000"),
        ({"question": "star " * 5000}, "too long"),
    ],
)
def test_bad_input_is_named_before_anything_runs(vlm, picture, change, said):
    given = {"question": QUESTION, "layer": 6, "max_new_tokens": 4, **change}
    with pytest.raises(ValueError, match=said):
        compare(vlm, picture, **given)


@pytest.mark.parametrize(("name", "value"), [("layer", 3.5), ("layer", "abc"), ("max_new_tokens", 2.5)])
def test_numbers_that_are_not_whole_are_refused(vlm, picture, name, value):
    with pytest.raises(TypeError, match=str(value)):
        compare(vlm, picture, QUESTION, **{"layer": 6, name: value})


def test_a_run_in_four_bits(monkeypatch):
    monkeypatch.setattr(loading, "_is_slower_in_four_bits", lambda *of: False)  # else some processors expand them
    quantized = load("embedded", "4bit", device="cpu")
    *_, comparison = compare(quantized, Image.new("RGB", (64, 64), "red"), "What color is it?", 6, max_new_tokens=3)
    assert comparison.precision == "4-bit"
    assert comparison.withdrawn.kv_cache_bytes < comparison.full.kv_cache_bytes
    assert torch.isfinite(torch.tensor(comparison.full.total_ms))


@pytest.fixture(scope="module")
def forms(tmp_path_factory, picture):
    """A picture in each form that a program may have it in."""
    values, file = np.asarray(picture), tmp_path_factory.mktemp("picture") / "picture.png"
    picture.save(file)
    return {
        "path": file,
        "text": str(file),
        "bytes": file.read_bytes(),
        "open file": io.BytesIO(file.read_bytes()),
        "array": values,
        "floats": values / 255,
        "16 bits": values.astype(np.uint16) * 257,
        "tensor": torch.from_numpy(values.copy()).permute(2, 0, 1),
        "tensor of floats": (torch.from_numpy(values / 255)).permute(2, 0, 1),
    }


@pytest.mark.parametrize(
    "form", ["path", "text", "bytes", "open file", "array", "floats", "16 bits", "tensor", "tensor of floats"]
)
def test_a_picture_is_taken_in_any_form(form, forms, vlm, picture):
    *_, expected = compare(vlm, picture, "What color is the shape?", 6, max_new_tokens=2)
    *_, found = compare(vlm, forms[form], "What color is the shape?", 6, max_new_tokens=2)
    assert (found.full.tokens, found.withdrawn.tokens) == (expected.full.tokens, expected.withdrawn.tokens)
    assert vlm.prompt(picture, "What?").shown.size == picture.size


def test_what_is_no_picture_is_told_what_one_is(vlm, picture, tmp_path):
    for given, said in (
        ([picture], "A picture is one of Pillow's, a path, .*this is a list"),
        (None, "this is a NoneType"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"shape \(2, 8, 8, 3\)"),
        (tmp_path, "is a folder"),
        (b"", "file is empty"),
        (b"words", "not a picture that can be read"),
    ):
        with pytest.raises(UserError, match=said):
            compare(vlm, given, "What?", 6)
        with pytest.raises(UserError, match=said):
            vlm.prepare_batch([(picture, "What?"), (given, "What?")])
    with pytest.raises(FileNotFoundError, match="There is no picture"):
        compare(vlm, tmp_path / "gone.png", "What?", 6)
