import pytest

from vtw_demo import benchmark
from vtw_demo.benchmark import Ratio, Shape, interleaved, measure_sweep, random_model


def test_runs_are_interleaved_and_the_warm_up_is_left_out():
    order = []
    times = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert order == ["a", "b"] * 4
    assert {name: len(rounds) for name, rounds in times.items()} == {"a": 3, "b": 3}


def test_ratios_have_medians_and_are_positive():
    assert Ratio("x", (3.0, 1.0, 2.0)).median == 2.0
    with pytest.raises(ValueError, match="x needs a positive ratio a round"):
        Ratio("x", ())


def test_a_shape_is_built_as_it_says(monkeypatch):
    monkeypatch.setitem(benchmark.SHAPES, "tiny", Shape(3, 32, 48, 2, 16))
    model, inputs = random_model("tiny", text_tokens=7, tokens_before=2)
    assert inputs["input_ids"].shape == (1, 23)
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 16
    assert inputs["input_ids"][0, 2] == inputs["input_ids"][0, 17] == model.config.image_token_id
    with pytest.raises(ValueError, match="at least one comes after it"):
        random_model("tiny", text_tokens=7, tokens_before=7)
    assert len(model.get_decoder().layers) == 3
    ratios = measure_sweep(model, inputs, rounds=2)
    assert [len(ratio.rounds) for ratio in ratios] == [2, 2]
    assert "in prefills" in ratios[0].name
