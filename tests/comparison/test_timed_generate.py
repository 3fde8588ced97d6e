"""What one answer takes, of a bare model with random weights."""

import time
from contextlib import nullcontext

import pytest
import torch

from vtw_demo.benchmark.shapes import random_inputs, random_model
from vtw_demo.comparison.timed_generate import timed_generate
from vtw_demo.measurements.flops import kv_cache_bytes_by_layer
from vtw_demo.withdrawal.withdraw import withdraw


@pytest.fixture
def prompt(tiny):
    model = random_model(tiny)
    return model, random_inputs(tiny, model, text_tokens=6, tokens_before=2)


def test_stages_add_up_and_the_cache_is_measured(prompt):
    model, inputs = prompt
    for layer in (1, 2, 4):
        cost = timed_generate(model.generate, model, inputs, withdraw(model, layer), max_new_tokens=5)
        assert cost.kv_cache_bytes == sum(
            kv_cache_bytes_by_layer(model.config, 22, 16, layer, decoded_tokens=4, bytes_per_element=4)
        )
        assert cost.total_ms == pytest.approx(cost.encode_ms + cost.prefill_ms + 4 * cost.decode_ms_per_token)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_one_token_has_no_decode(prompt):
    model, inputs = prompt
    cost = timed_generate(model.generate, model, inputs, nullcontext(), max_new_tokens=1)
    assert cost.decode_ms_per_token is None
    assert cost.total_ms == pytest.approx(cost.encode_ms + cost.prefill_ms)


def test_new_tokens_are_handed_over_in_time_that_is_not_counted_and_may_end_the_answers(tiny):
    model = random_model(tiny)
    inputs = random_inputs(tiny, model, text_tokens=6, tokens_before=2, batch=2)
    expected = model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, 22:]
    seen = []

    def look(tokens):
        time.sleep(0.3)
        seen.append(tokens)
        return len(seen) == 3

    cost = timed_generate(model.generate, model, inputs, nullcontext(), look, max_new_tokens=5, do_sample=False)
    assert torch.equal(torch.stack(seen, dim=1), expected[:, :3])
    assert cost.total_ms < 600


def test_hooks_are_gone_after_an_exception(prompt):
    model, inputs = prompt
    with pytest.raises(ValueError, match="nonsense"):
        timed_generate(model.generate, model, {**inputs, "nonsense": torch.ones(1)}, nullcontext(), max_new_tokens=3)
    assert not any(module._forward_pre_hooks for module in model.modules())
