import json

import pytest

from vtw_demo.comparison.analysis import MEASUREMENTS, Analysis, Part, all_parts, measure
from vtw_demo.comparison.compare import Comparison, compare_prompt
from vtw_demo.errors import UserError
from vtw_demo.measurements.attention import measure_attention

QUESTION = "Describe the picture."


@pytest.fixture(scope="module")
def prompt(vlm, picture):
    return vlm.prompt(picture, QUESTION)


@pytest.fixture(scope="module")
def comparison(vlm, prompt):
    *_, last = compare_prompt(vlm, prompt, 4, max_new_tokens=8)
    assert isinstance(last, Comparison)
    return last


@pytest.fixture
def analysis(vlm, prompt, comparison):
    return Analysis(vlm, prompt, comparison)


def passes(vlm):
    """Counts the model's forward passes."""
    counted = []
    handle = vlm.model.register_forward_pre_hook(lambda *_: counted.append(1))
    return counted, handle


def test_nothing_is_measured_before_it_is_asked_for_and_nothing_twice(vlm, analysis):
    counted, handle = passes(vlm)
    try:
        assert analysis.known(Part("attention", "withdrawn")) is None
        assert not counted
        first = analysis.of("attention", "withdrawn")
        assert len(counted) == 1
        assert analysis.of("attention", "withdrawn") is first is analysis.known(Part("attention", "withdrawn"))
        assert analysis.of("attention", "full") is analysis.of("attention", "full")
        assert len(counted) == 2
        for _ in range(2):
            analysis.of("attention_maps", "full", 0)
            analysis.of("attention_maps", "withdrawn", 0)
        assert len(counted) == 4
    finally:
        handle.remove()


def test_the_processor_is_called_once_for_a_query(vlm, picture, monkeypatch):
    called = []
    real = type(vlm.processor).__call__
    monkeypatch.setattr(
        type(vlm.processor), "__call__", lambda self, **given: called.append(given["images"]) or real(self, **given)
    )
    prompt = vlm.prompt(picture, QUESTION)
    *_, comparison = compare_prompt(vlm, prompt, 4, max_new_tokens=4)
    analysis = Analysis(vlm, prompt, comparison)
    for part in all_parts(comparison):
        analysis.of(part.name, part.run)
    shown = [images[0][0] for images in called if len(images[0][0].getcolors(2**20) or ()) != 1]
    with_coordinates = [image for image in shown if image.tobytes() != picture.tobytes()]
    assert len(shown) - len(with_coordinates) == 1, "the others measure where patches lie, or show a blank picture"


def test_parts_are_those_of_both_runs(vlm, prompt, comparison, analysis):
    full, withdrawn = (analysis.of("attention", run) for run in ("full", "withdrawn"))
    assert withdrawn == measure_attention(vlm.model, prompt.inputs, comparison.withdrawn.tokens, layer=4)
    assert full == measure_attention(vlm.model, prompt.inputs, comparison.full.tokens)
    assert analysis.of("layer_times").layer == analysis.of("staircase").layer == 4
    assert analysis.of("migration").withdrawal_layer == 4
    assert len(analysis.of("patches").patches) == comparison.visual_tokens == prompt.visual_tokens


def test_a_run_beside_has_its_own_attention(vlm, prompt, comparison):
    *_, three = compare_prompt(vlm, prompt, 4, max_new_tokens=8, full=comparison.full, beside="fastv")
    analysis = Analysis(vlm, prompt, three)
    masses = analysis.of_runs("attention")
    assert list(masses) == ["full", "withdrawn", "beside"]
    assert masses["beside"] == measure_attention(vlm.model, prompt.inputs, three.beside.tokens, recipe=three.recipe)
    assert analysis.longest == max(len(run.tokens) for run in (three.full, three.withdrawn, three.beside))
    data = json.loads(json.dumps(analysis.to_json()))
    assert data["attention"]["beside"]["recipe"] == three.recipe
    assert list(data["attention_maps"][0]) == ["full", "withdrawn", "beside"]


def test_another_layer_of_the_same_query_shares_what_the_full_run_knows(vlm, prompt, comparison, analysis):
    first = analysis.of("sweep")
    *_, other = compare_prompt(vlm, prompt, 6, max_new_tokens=8, full=comparison.full)
    again = analysis.at(other)
    assert again.known(Part("sweep")) is first
    assert again.known(Part("attention", "withdrawn")) is None
    assert again.of("attention", "withdrawn").withdrawal_layer == 6


def test_a_part_measured_elsewhere_is_kept(vlm, prompt, comparison, analysis):
    part = Part("attention", "full")
    analysis.keep(part, measure(vlm, prompt, comparison, part))
    counted, handle = passes(vlm)
    try:
        assert analysis.of("attention", "full").visual_tokens == prompt.visual_tokens
        assert not counted
    finally:
        handle.remove()


def test_all_of_it_is_plain_data(analysis, comparison):
    data = json.loads(json.dumps(analysis.to_json()))
    assert set(data) == {"verdict", "comparison", "timing", "follow_up", *MEASUREMENTS}
    assert data["comparison"]["full"]["answer"] == comparison.full.answer
    assert data["timing"] is None
    (maps,) = data["attention_maps"]
    assert sum(maps["full"]["weights"][0]) == pytest.approx(
        data["attention"]["full"]["last_prompt"][0][data["attention"]["full"]["segments"].index("image")], abs=1e-5
    )
    analysis.of("attention_maps", "full", 1)
    analysis.of("attention_maps", "withdrawn", 1)
    assert [maps["full"]["answer_token"] for maps in analysis.to_json()["attention_maps"]] == [None, 2]


def test_what_cannot_be_known_says_why(vlm, prompt, comparison, monkeypatch):
    def refuse(*_):
        raise UserError("Its patches aren't known.")

    monkeypatch.setattr("vtw_demo.comparison.analysis.find_patches", refuse)
    data = Analysis(vlm, prompt, comparison).to_json()
    assert data["patches"] == {"unknown": "Its patches aren't known."}
    assert data["attention_maps"]
