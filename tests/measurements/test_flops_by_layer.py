import json
from contextlib import ExitStack

import pytest
import torch
from transformers import GPT2Config

from tests.families import LAYERS
from tests.tiny_models import build
from vtw_demo.measurements.flops import LayerCost, Staircase, kv_cache_bytes_by_layer, prefill_flops_by_layer, staircase
from vtw_demo.withdrawal.architectures import find_decoder
from vtw_demo.withdrawal.segments import visual_token_mask
from vtw_demo.withdrawal.withdraw import withdraw

WINDOWED = "gemma3 (window shorter than the prompt)"
FAMILIES = ["llava", "qwen2_5_vl", WINDOWED]


def prompt_of(name):
    """A tiny model, inputs for it, and their numbers of tokens and of visual tokens."""
    tiny = build(name)
    inputs = tiny.prompt([1, 2, "image", 3, 4, 5])
    visual = visual_token_mask(tiny.model.config, inputs["input_ids"])
    return tiny.model, inputs, inputs["input_ids"].shape[1], int(visual.sum())


def prefill(model, inputs, layer):
    """The number of tokens that each decoder layer projects to queries, and the KV cache that the prefill leaves."""
    tokens = []

    def note(module, args):
        tokens.append(args[0].shape[-2])

    with torch.no_grad(), withdraw(model, layer), ExitStack() as hooks:
        for decoder_layer in find_decoder(model).layers:
            hooks.callback(decoder_layer.self_attn.q_proj.register_forward_pre_hook(note).remove)
        return tokens, model(**inputs, use_cache=True).past_key_values


def held(cache):
    return [layer.keys.nbytes + layer.values.nbytes for layer in cache.layers]


@pytest.mark.parametrize("layer", [1, 2, LAYERS])
@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_and_cache_are_those_of_a_real_prefill(name, layer):
    model, inputs, prompt, visual = prompt_of(name)
    stairs = staircase(model.config, prompt, visual, layer, bytes_per_element=4)
    assert stairs.layer == layer
    for costs, withdrawal_layer in ((stairs.full, LAYERS), (stairs.withdrawn, layer)):
        tokens, cache = prefill(model, inputs, withdrawal_layer)
        assert [cost.tokens for cost in costs] == tokens
        assert [cost.kv_cache_bytes for cost in costs] == held(cache)


@pytest.mark.parametrize("layer", [1, 3, LAYERS])
def test_totals_are_those_of_the_whole_prefill(layer):
    model, _, prompt, visual = prompt_of("llava")
    stairs = staircase(model.config, prompt, visual, layer)
    for total, withdrawal_layer in ((stairs.full_total, LAYERS), (stairs.withdrawn_total, layer)):
        prefill = prefill_flops_by_layer(model.config, prompt, visual, withdrawal_layer)
        assert total.flops == prefill.total - prefill.head
        assert total.kv_cache_bytes == sum(kv_cache_bytes_by_layer(model.config, prompt, visual, withdrawal_layer))
        assert total.tokens == withdrawal_layer * prompt + (LAYERS - withdrawal_layer) * (prompt - visual)
    assert (stairs.full == stairs.withdrawn) == (layer == LAYERS)


def test_a_schedule_beside_has_its_own_costs():
    model, _, prompt, visual = prompt_of("llava")
    size, beside = (model.config, prompt, visual), {0: 0.5, 2: 0.0}
    stairs = staircase(*size, 1, beside=beside)
    flops = prefill_flops_by_layer(*size, beside)
    assert [cost.tokens for cost in stairs.beside] == [part.tokens for part in flops.layers]
    assert stairs.beside_total.flops == flops.total - flops.head
    assert stairs.beside_total.kv_cache_bytes == sum(kv_cache_bytes_by_layer(*size, beside))
    assert staircase(*size, 1).beside is None


def test_plain_data():
    stairs = Staircase(1, (LayerCost(5, 50, 20),) * 2, (LayerCost(5, 50, 20), LayerCost(2, 18, 8)))
    data = json.loads(json.dumps(stairs.to_json()))
    assert data["withdrawn"][1] == {"tokens": 2, "flops": 18, "kv_cache_bytes": 8}
    assert data["full_total"] == {"tokens": 10, "flops": 100, "kv_cache_bytes": 40}
    assert data["withdrawn_total"] == {"tokens": 7, "flops": 68, "kv_cache_bytes": 28}


def test_what_the_closed_form_refuses_is_refused():
    model, _, prompt, visual = prompt_of("llava")
    with pytest.raises(ValueError, match=f"from 1 to {LAYERS}.*this is {LAYERS + 1}"):
        staircase(model.config, prompt, visual, LAYERS + 1)
    with pytest.raises(ValueError, match="no decoder layers"):
        staircase(GPT2Config(), 10, 5, 1)
