from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from tests.families import LAYERS
from tests.tiny_models import build
from vtw_demo.comparison import timing
from vtw_demo.comparison.repeated_timing import measure_layer_times
from vtw_demo.withdrawal import token_pruning
from vtw_demo.withdrawal.architectures import find_decoder
from vtw_demo.withdrawal.segments import visual_token_mask
from vtw_demo.withdrawal.withdraw import withdraw

LAYER = 2


@pytest.fixture(scope="module")
def model():
    return build("llava").model


@pytest.fixture(scope="module")
def inputs():
    return build("llava").prompt([1, 2, "image", 3, 4, 5])


def hooks(model):
    return [(list(module._forward_hooks), list(module._forward_pre_hooks)) for module in model.modules()]


@contextmanager
def hooked(module, hook, **options):
    handle = module.register_forward_hook(hook, **options)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("layer", [1, LAYER, LAYERS])
def test_every_layer_of_both_runs_has_a_time(model, inputs, layer):
    before = hooks(model)
    times = measure_layer_times(model, inputs, layer, rounds=2)
    assert (times.layer, times.rounds) == (layer, 2)
    assert len(times.full) == len(times.withdrawn) == LAYERS
    assert min(*times.full, *times.withdrawn) > 0
    assert hooks(model) == before


def test_a_run_beside_has_its_times(model, inputs):
    before = hooks(model)
    times = measure_layer_times(model, inputs, LAYER, rounds=1, recipe="0:uniform_grid:0.5")
    assert len(times.beside) == LAYERS
    assert min(times.beside) > 0
    assert measure_layer_times(model, inputs, LAYER, rounds=1).beside is None
    assert hooks(model) == before


def test_runs_take_turns_in_prefills_as_generate_makes_them(model, inputs):
    last_layer, passes = find_decoder(model).layers[-1], []

    def note(module, args, kwargs, output):
        passes.append({"use_cache": kwargs["use_cache"], "cache": output.past_key_values, "logits": output.logits})

    tokens = []
    with (
        hooked(model, note, with_kwargs=True),
        hooked(last_layer.self_attn.q_proj, lambda module, args, output: tokens.append(output.shape[-2])),
    ):
        measure_layer_times(model, inputs, LAYER, rounds=3)
    prompt = inputs["input_ids"].shape[1]
    kept = prompt - int(visual_token_mask(model.config, inputs["input_ids"]).sum())
    assert tokens == [prompt, kept, kept, prompt] * 2  # a round to warm up, and three that count
    assert all(of_pass["use_cache"] and of_pass["cache"] is not None for of_pass in passes)
    assert all(of_pass["logits"].shape[1] == 1 for of_pass in passes)


def test_what_the_model_says_is_unchanged_while_it_is_timed(model, inputs):
    timed = []
    with hooked(model, lambda module, args, output: timed.append(output.logits)):
        measure_layer_times(model, inputs, LAYER, rounds=1)
    for index, layer in enumerate((LAYERS, LAYER, LAYER, LAYERS)):
        with torch.inference_mode(), withdraw(model, layer):
            expected = model(**inputs, use_cache=True, logits_to_keep=1).logits
        assert torch.equal(timed[index], expected)


def test_the_work_of_withdrawal_is_part_of_layer_k(model, inputs, monkeypatch):
    """By a clock that goes on by 1 ms each time it is read, and by 100 ms where kept tokens are taken."""
    clock = [0.0]
    real = token_pruning.gather_hidden_states

    def now():
        clock[0] += 0.001
        return clock[0]

    def take(*args):
        clock[0] += 0.1
        return real(*args)

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=now))
    monkeypatch.setattr(token_pruning, "gather_hidden_states", take)
    times = measure_layer_times(model, inputs, LAYER, rounds=2)
    assert times.full == pytest.approx([1.0] * LAYERS)
    assert times.withdrawn == pytest.approx([101.0 if layer == LAYER else 1.0 for layer in range(LAYERS)])


def test_the_median_of_the_rounds_is_taken_and_the_first_one_left_out(model, inputs, monkeypatch):
    readings = iter([*[0.0, 9.0] * (2 * LAYERS), *[0.0, 3.0] * (2 * LAYERS), *[0.0, 1.0] * (4 * LAYERS)])
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: next(readings)))
    times = measure_layer_times(model, inputs, LAYER, rounds=3)
    assert times.full == times.withdrawn == (1000.0,) * LAYERS


def test_an_exception_inside_a_layer_leaves_no_hook(model, inputs):
    before = hooks(model)

    def fail(*_):
        raise RuntimeError("the layer broke")

    with hooked(find_decoder(model).layers[1], fail), pytest.raises(RuntimeError, match="the layer broke"):
        measure_layer_times(model, inputs, LAYER)
    assert hooks(model) == before
    with withdraw(model, LAYER):  # no withdrawal is left active
        pass


@pytest.mark.parametrize("rounds", [0, -1])
def test_numbers_of_rounds_that_are_none(model, inputs, rounds):
    with pytest.raises(ValueError, match=f"needed; {rounds}"):
        measure_layer_times(model, inputs, LAYER, rounds=rounds)


def test_layers_that_are_not_there(model, inputs):
    with pytest.raises(ValueError, match=f"from 1 to {LAYERS}.*this is {LAYERS + 1}"):
        measure_layer_times(model, inputs, LAYERS + 1)
