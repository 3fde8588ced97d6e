import time
from contextlib import contextmanager

import pytest

from vtw_demo.benchmark.costs import (
    BARE,
    DEQUANTISING,
    STAGES,
    measure_answers,
    measure_comparison,
    measure_overheads,
)
from vtw_demo.benchmark.shapes import random_inputs, random_model
from vtw_demo.measurements.flops import cache_left, flops_left


@pytest.fixture
def prompt(tiny):
    model = random_model(tiny)
    return model, random_inputs(tiny, model, text_tokens=6, tokens_before=2)


def test_everything_is_measured_in_every_round_beside_what_theory_says(prompt):
    model, inputs = prompt
    entered = []

    @contextmanager
    def other():
        entered.append(1)
        yield

    costs = measure_answers(model, inputs, [2, 4], 3, 2, {"other": other})
    assert [cost.name for cost in costs] == [BARE, "withdrawn at 2", "withdrawn at 4", "other"]
    assert len(entered) == 4  # once to warm up, twice timed, once for its memory
    for cost in costs:
        runs = 6 if cost.name == BARE else 2  # one beside each of the three others
        assert [len(times) for times in (*cost.milliseconds, *cost.ratios)] == [runs] * 2 * len(STAGES)
        assert cost.to_json()["median_ratio"].keys() == set(STAGES)
    bare, at_2, at_4, _ = costs
    assert [bare.ratio(stage) for stage in STAGES] == pytest.approx([1.0] * 4)
    assert at_2.token_layers_left == pytest.approx((2 * 22 + 2 * 6) / (4 * 22))
    assert at_2.flops_left == flops_left(model.config, 22, 16)[1]
    assert at_2.cache_left == cache_left(model.config, 22, 16)[1]
    assert (at_4.token_layers_left, at_4.flops_left) == (1.0, 1.0)
    assert all(cost.peak_bytes > 0 for cost in costs)
    assert at_2.kv_cache_bytes < at_4.kv_cache_bytes == bare.kv_cache_bytes


def test_ratios_are_to_the_bare_run_beside_it(prompt):
    model, inputs = prompt
    runs = []

    @contextmanager
    def slow():
        runs.append("slow")
        hook = model.register_forward_pre_hook(lambda *_: time.sleep(0.2))
        try:
            yield
        finally:
            hook.remove()

    bare, other = measure_answers(model, inputs, [], 3, 3, {"slow": slow})
    assert runs == ["slow"] * 5
    units = bare.milliseconds[STAGES.index("total")]
    taken = other.milliseconds[STAGES.index("total")]
    assert other.ratios[STAGES.index("total")] == pytest.approx([a / b for a, b in zip(taken, units, strict=True)])
    assert min(taken) > 600


def test_decoding_takes_two_tokens(prompt):
    with pytest.raises(ValueError, match="at least 2"):
        measure_answers(*prompt, [2], 1, 1)


def test_a_comparison_is_measured_against_bare_runs(vlm, picture):
    ratio = measure_comparison(vlm, picture, "What is it?", 6, 3, 2)
    assert len(ratio.rounds) == 2
    assert ratio.bar == 1.05


@pytest.mark.parametrize("quantization", [None, "4bit"])
def test_every_pass_is_measured_against_its_unit_and_dequantising_in_4_bits_alone(tiny, quantization):
    model = random_model(tiny, quantization=quantization)
    found = {ratio.name: ratio for ratio in measure_overheads(model, random_inputs(tiny, model, 6, 2), 2)}
    names = ("withdraw at K = L", 'withdraw at "auto"', "attention mass of all layers, in prefills", "sweep of every K")
    for name in names:
        (ratio,) = [ratio for found_name, ratio in found.items() if found_name.startswith(name)]
        assert ratio.bar is not None
        assert len(ratio.rounds) == 2
    assert (DEQUANTISING in found) == (quantization == "4bit")
