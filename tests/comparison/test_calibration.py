import json
import random
import statistics
import threading
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.nn.functional import kl_div

from vtw_demo.comparison.calibration import Calibration, CalibrationProgress, CalibrationStore, Measurement, calibrate
from vtw_demo.comparison.samples import Sample
from vtw_demo.embedded.scenes import draw, random_scene
from vtw_demo.files import write_whole
from vtw_demo.measurements.flops import prefill_flops
from vtw_demo.measurements.layer_sweep import sweep
from vtw_demo.models.loading import load
from vtw_demo.withdrawal.teacher_forcing import with_answer
from vtw_demo.withdrawal.withdraw import withdraw


@pytest.fixture(scope="module")
def samples():
    generator = random.Random(1)
    return [Sample(f"scene {n}", draw(random_scene(generator, 2)), "What do you see?") for n in range(3)]


def calibration(*kl, threshold=0.01, flops_left=(0.25, 0.5, 0.75)):
    measurements = tuple(Measurement(row, flops_left) for row in kl)
    names = tuple(f"sample {n}" for n in range(len(kl)))
    return Calibration("model", "abc", "4bit", "4-bit", "usual", "tests", threshold, names, measurements)


def test_measures_each_sample_and_ends_with_the_calibration(vlm, samples):
    *progress, result = calibrate(vlm, samples, threshold=0.02)
    assert [(event.measured, event.samples) for event in progress] == [(1, 3), (2, 3), (3, 3)]
    assert isinstance(result, Calibration)
    assert progress[-1].so_far == result
    inputs = [vlm.prepare(sample.picture, sample.question) for sample in samples]
    for measurement, prepared in zip(result.measurements, inputs, strict=True):
        assert measurement.kl == pytest.approx(sweep(vlm.model, prepared).kl[0].tolist(), abs=1e-5)
        prompt, visual = prepared["input_ids"].shape[1], vlm.visual_tokens(prepared)
        costs = [prefill_flops(vlm.model.config, prompt, visual, layer) for layer in range(1, vlm.layers + 1)]
        assert measurement.flops_left == pytest.approx([cost / costs[-1] for cost in costs[:-1]])
    assert (result.model, result.quantization, result.precision) == ("embedded", None, vlm.precision)
    assert result.revision == vlm.revision != ""
    assert (result.threshold, result.samples) == (0.02, ("scene 0", "scene 1", "scene 2"))


@pytest.mark.parametrize("answer_tokens", [2, 6, 96])
def test_a_long_answer_is_measured_at_each_of_its_tokens(vlm, samples, answer_tokens):
    """Against the model itself, withdrawn, with its own answer given: token by token."""
    *_, result = calibrate(vlm, [replace(samples[0], answer_tokens=answer_tokens)])
    inputs = vlm.prepare(samples[0].picture, samples[0].question)
    answer = vlm.generate(**inputs, max_new_tokens=answer_tokens)[:, inputs["input_ids"].shape[1] :]
    assert answer.shape[1] == answer_tokens or answer_tokens == 96
    whole = with_answer(vlm.model, inputs, answer[:, :-1])
    with torch.no_grad():
        full = vlm.model(**whole, use_cache=False).logits[0, -answer.shape[1] :].log_softmax(-1)
        for layer in (1, 3, 4, 8):
            with withdraw(vlm.model, layer=layer):
                withdrawn = vlm.model(**whole, use_cache=False).logits[0, -answer.shape[1] :].log_softmax(-1)
            expected = kl_div(full, withdrawn, reduction="none", log_target=True).sum(-1).mean().item()
            assert result.measurements[0].kl[layer - 1] == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_mean_spread_and_choice():
    result = calibration((0.9, 0.02, 0.0), (0.5, 0.0, 0.004))
    assert result.layers == (1, 2, 3)
    assert result.mean == pytest.approx((0.7, 0.01, 0.002))
    assert result.standard_deviation == pytest.approx((0.2, 0.01, 0.002))
    assert result.layer == result.nearest_layer == 2
    assert result.flops_left == (0.25, 0.5, 0.75)
    assert (
        result.sentence()
        == "K = 2 is the first to meet the threshold of 0.01 on 2 samples (mean KL 0.01, 50 % of prefill FLOPs left)."
    )


def test_quantiles_are_those_of_the_samples():
    values = [random.Random(0).random() for _ in range(21)]
    result = calibration(*((value, 0.0, 0.0) for value in values))
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    assert result.quantile(0.1)[0] == pytest.approx(deciles[0])
    assert result.quantile(0.9)[0] == pytest.approx(deciles[-1])
    assert (result.quantile(0)[0], result.quantile(1)[0]) == (min(values), max(values))


def test_where_no_layer_meets_the_threshold_the_nearest_is_given():
    result = calibration((0.9, 0.02, 0.03))
    assert (result.layer, result.nearest_layer) == (None, 2)
    assert result.sentence().startswith(
        "No K meets the threshold; K = 2 is nearest to the threshold of 0.01 on 1 sample"
    )


def test_one_sample_is_no_result():
    few = "One sample is too few to choose K by."
    assert calibration((0.9, 0.0, 0.0)).sentence().endswith(few)
    assert few not in calibration((0.9, 0.0, 0.0), (0.9, 0.0, 0.0)).sentence()


@pytest.mark.parametrize(
    ("kl", "said"),
    [
        ((0.0, 0.5, 0.0), "but K = 2 is above it again."),
        ((0.0, 0.0, 0.5), "but K = 3 is above it again."),
        ((0.5, 0.0, 0.5), "but K = 3 is above it again."),
    ],
)
def test_the_first_layer_is_not_all_that_is_said_where_a_later_one_is_above_again(kl, said):
    sentence = calibration(kl, kl).sentence()
    assert said in sentence
    assert "is the first" not in sentence


def test_costs_may_be_unknown():
    result = calibration((0.9, 0.0, 0.0), flops_left=None)
    assert result.flops_left is None
    assert "FLOPs" not in result.sentence()


def test_json_names_what_was_measured_and_is_read_back():
    result = calibration((0.9, 0.02, 0.0), (0.5, 0.0, 0.004))
    written = json.loads(json.dumps(result.to_json()))
    names = ("model", "revision", "quantization", "samples", "threshold", "layer", "mean", "standard_deviation")
    assert all(name in written for name in names)
    assert (written["layer"], written["revision"], written["quantization"]) == (2, "abc", "4bit")
    assert Calibration.from_json(written) == result
    short = {"kl": [0.1, 0.2], "flops_left": [0.25, 0.5]}
    for change in (
        {"measurements": [{"kl": []}]},
        {"measurements": []},
        {"measurements": [written["measurements"][0], short]},
        {"measurements": [{"kl": [], "flops_left": None}] * 2},
        {"samples": ["one"]},
        {"threshold": -1},
        {"model": ...},
    ):
        broken = {name: value for name, value in (written | change).items() if value is not ...}
        with pytest.raises(ValueError, match=r"."):
            Calibration.from_json(broken)


def test_bad_arguments(vlm, samples):
    with pytest.raises(ValueError, match="no samples"):
        next(calibrate(vlm, []))
    with pytest.raises(ValueError, match="threshold must be a number from 0 on"):
        next(calibrate(vlm, samples, threshold=-1.0))


def test_samples_of_one_name_and_one_that_comes_twice_all_count(vlm, samples):
    one, other = samples[0], replace(samples[1], name=samples[0].name)
    *_, result = calibrate(vlm, [one, other, one])
    assert result.samples == (one.name,) * 3
    assert result.measurements[0] == result.measurements[2] != result.measurements[1]


def test_a_stopped_calibration_goes_on_where_it_was(vlm, samples, tmp_path, monkeypatch):
    store, stop = CalibrationStore.of(vlm, tmp_path), threading.Event()
    events = []
    for event in calibrate(vlm, samples, store=store, stop=stop):
        events.append(event)
        stop.set()
    assert [type(event) for event in events] == [CalibrationProgress]
    assert store.result() is None
    measured = []
    monkeypatch.setattr(
        "vtw_demo.comparison.calibration.sweep", lambda model, inputs: measured.append(1) or sweep(model, inputs)
    )
    *_, result = calibrate(vlm, samples, store=store)
    assert len(measured) == 2
    assert result.measurements[0] == events[0].so_far.measurements[0]
    assert CalibrationStore.of(vlm, tmp_path).result() == result
    # Another threshold needs no measurement at all.
    *_, stricter = calibrate(vlm, samples, threshold=1e-9, store=store)
    assert len(measured) == 2
    assert stricter.measurements == result.measurements


def test_a_killed_writer_loses_at_most_its_line(vlm, samples, tmp_path):
    store = CalibrationStore(tmp_path / "store")
    store.keep_measurement("first", Measurement((0.1, 0.2), (0.5, 0.6)))
    file = next(store.folder.iterdir())
    file.write_text(file.read_text() + '\n{"sample": "cut", "kl": [0.')
    store.keep_measurement("second", Measurement((0.3, 0.4), None))
    assert store.measurements(2) == {
        "first": Measurement((0.1, 0.2), (0.5, 0.6)),
        "second": Measurement((0.3, 0.4), None),
    }
    assert store.measurements(3) == {}


def test_a_result_is_written_whole_or_not_at_all(tmp_path):
    write_whole(tmp_path / "file", b"old")
    with pytest.raises(TypeError):
        write_whole(tmp_path / "file", None)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
    store = CalibrationStore(tmp_path)
    (tmp_path / "calibration.json").write_text("{")
    assert store.result() is None


def test_stores_of_other_models_quantizations_and_revisions_are_others(small, small_folder, tmp_path):
    quantized = [load(str(small_folder), "4bit", device="cpu", quantize_all=everywhere) for everywhere in (False, True)]
    folders = {
        CalibrationStore.of(other, tmp_path).folder
        for other in (small, replace(small, name="a/b"), *quantized, replace(small, revision="new"))
    }
    assert len(folders) == 5
    assert all(folder.parent == tmp_path for folder in folders)


def test_another_picture_is_another_sample(vlm, samples, tmp_path):
    store = CalibrationStore.of(vlm, tmp_path)
    list(calibrate(vlm, samples[:1], store=store))
    other = Sample(samples[0].name, Image.new("RGB", (224, 224), "red"), samples[0].question)
    list(calibrate(vlm, [other], store=store))
    assert len(store.measurements(vlm.layers - 1)) == 2
