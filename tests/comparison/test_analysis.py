import json

import pytest

from vtw_demo.comparison.analysis import Examination, FullExamination
from vtw_demo.comparison.compare import Comparison, compare
from vtw_demo.measurements.attention import measure_attention

QUESTION = "Describe the picture."


@pytest.fixture(scope="module")
def comparison(vlm, picture):
    *_, last = compare(vlm, picture, QUESTION, 4, max_new_tokens=8)
    assert isinstance(last, Comparison)
    return last


@pytest.fixture
def examination(vlm, picture, comparison):
    return Examination(FullExamination(vlm, picture, QUESTION, comparison.full), comparison)


def passes(vlm):
    """Counts the model's forward passes."""
    counted = []
    handle = vlm.model.register_forward_pre_hook(lambda *_: counted.append(1))
    return counted, handle


def test_nothing_is_measured_before_it_is_asked_for_and_nothing_twice(vlm, examination):
    counted, handle = passes(vlm)
    try:
        assert not counted
        first = examination.attention
        assert len(counted) == 1
        assert examination.attention is first
        assert examination.full.attention is examination.full.attention
        assert len(counted) == 2
        for _ in range(2):
            examination.full.attention_map(0)
            examination.attention_map(0)
        assert len(counted) == 4
    finally:
        handle.remove()


def test_parts_are_those_of_both_runs(vlm, picture, comparison, examination):
    inputs = vlm.prepare(picture, QUESTION)
    assert examination.attention == measure_attention(vlm.model, inputs, comparison.withdrawn.tokens, layer=4)
    assert examination.full.attention == measure_attention(vlm.model, inputs, comparison.full.tokens)
    assert examination.layer_times.layer == examination.staircase.layer == examination.migration.withdrawal_layer == 4
    assert len(examination.full.patches.patches) == comparison.visual_tokens


def test_another_layer_of_the_same_query_shares_what_the_full_run_knows(vlm, picture, comparison, examination):
    *_, other = compare(vlm, picture, QUESTION, 6, max_new_tokens=8, full=comparison.full)
    again = Examination(examination.full, other)
    assert again.full.sweep is examination.full.sweep
    assert again.attention.withdrawal_layer == 6


def test_a_comparison_of_another_run_is_refused(vlm, picture, comparison, make_run):
    with pytest.raises(ValueError, match="full run"):
        Examination(FullExamination(vlm, picture, QUESTION, make_run()), comparison)


def test_times_are_measured_again_as_often_as_asked(examination):
    assert [timing.rounds for timing in examination.repeat_timing(2)] == [1, 2]
    assert examination.timing.rounds == 2


def test_all_of_it_is_plain_data(examination, comparison):
    data = json.loads(json.dumps(examination.to_json()))
    assert data["comparison"]["full"]["answer"] == comparison.full.answer
    assert data["timing"] is None
    (maps,) = data["attention_maps"]
    assert sum(maps["full"]["weights"][0]) == pytest.approx(
        data["attention"]["full"]["last_prompt"][0][data["attention"]["full"]["segments"].index("image")], abs=1e-5
    )
