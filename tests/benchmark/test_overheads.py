from vtw_demo.benchmark.overheads import DEQUANTISING, measure_comparison, measure_overheads
from vtw_demo.benchmark.shapes import random_inputs, random_model


def test_every_pass_is_measured_against_its_unit(tiny):
    model = random_model(tiny)
    found = {ratio.name: ratio for ratio in measure_overheads(model, random_inputs(tiny, model, 6, 2), 3)}
    for name in ("withdraw at K = L", "attention mass of all layers, in prefills", "sweep of every K"):
        (ratio,) = [ratio for found_name, ratio in found.items() if found_name.startswith(name)]
        assert ratio.bar is not None
        assert len(ratio.rounds) >= 2


def test_a_comparison_is_measured_against_bare_runs(vlm, picture):
    ratio = measure_comparison(vlm, picture, "What is it?", 6, 3, 2)
    assert len(ratio.rounds) == 2
    assert ratio.bar == 1.05


def test_what_dequantising_takes_is_measured_in_4_bits_alone(tiny):
    for quantization in (None, "4bit"):
        model = random_model(tiny, quantization=quantization)
        found = {ratio.name for ratio in measure_overheads(model, random_inputs(tiny, model, 6, 2), 1)}
        assert (DEQUANTISING in found) == (quantization == "4bit")
