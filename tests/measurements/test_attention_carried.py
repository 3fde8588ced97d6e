"""What attention carries, against eager attention's full weights and the values that its interface is handed."""

import json
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from tests import golden
from tests.oracles import attention_implementation, kept_tokens_alone
from tests.tiny_models import build
from vtw_demo.measurements.attention import measure_attention, measure_attention_map
from vtw_demo.withdrawal.segments import segment_ids, visual_token_mask

ANSWER = [11, 12, 13]


def eager_weights_and_values(model, inputs, layer, masks):
    """By layer, the full matrices (heads, queries, keys) and values (heads, keys, width) of eager attention, in which
    layers from `layer` on see no visual key: it is masked or, where that isn't the same, the kept tokens run alone."""
    from transformers.masking_utils import eager_mask

    visual, found = visual_token_mask(model.config, inputs["input_ids"]), {}

    def attention(module, query, key, value, attention_mask, **options):
        if masks and layer is not None and module.layer_idx >= layer:
            attention_mask = attention_mask.masked_fill(visual, torch.finfo(attention_mask.dtype).min)
        if (chosen := options.pop("indices", None)) is not None:  # an indexer's
            others = torch.ones_like(attention_mask[:, 0], dtype=torch.bool).scatter(-1, chosen.long(), False)
            attention_mask = attention_mask.masked_fill(others[:, None], torch.finfo(attention_mask.dtype).min)
        output, weights = sys.modules[type(module).__module__].eager_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        times = query.shape[1] // value.shape[1]
        found[module.layer_idx] = weights[0].double(), value[0].repeat_interleave(times, dim=0).double()
        return output, weights

    alone = nullcontext() if masks or layer is None else kept_tokens_alone(model, {layer: visual})
    with torch.no_grad(), attention_implementation(model, "recorded", attention, eager_mask), alone:
        model(**inputs)
    return {index: at_their_places(*of_layer, ~visual[0]) for index, of_layer in found.items()}


def at_their_places(weights, values, kept):
    """Those of kept tokens alone as those of all, of which the others have none."""
    if weights.shape[-1] == len(kept):
        return weights, values
    all_weights = weights.new_zeros(len(weights), len(kept), len(kept))
    all_weights[:, kept.nonzero(), kept.nonzero()[:, 0]] = weights
    all_values = values.new_zeros(len(values), len(kept), values.shape[-1])
    all_values[:, kept] = values
    return all_weights, all_values


def expected(weights, values, visual):
    """Of one query's weights, (heads, keys): each key's share of the contributions, and the cosine, head by head."""
    contributed = sum(of_head * value.norm(dim=-1) for of_head, value in zip(weights, values, strict=True))
    whole = torch.cat([of_head @ value for of_head, value in zip(weights, values, strict=True)])
    text = [of_head * ~visual / of_head[~visual].sum() for of_head in weights]
    without = torch.cat([of_head @ value for of_head, value in zip(text, values, strict=True)])
    return contributed / contributed.sum(), whole @ without / (whole.norm() * without.norm())


def check(model, inputs, layer, without=(), masks=True):
    answer = torch.tensor([ANSWER])
    whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"], answer], dim=1)}
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    for name in inputs.keys() & {"token_type_ids", "mm_token_type_ids"}:
        whole[name] = torch.nn.functional.pad(inputs[name], (0, len(ANSWER)))
    prompt, ids = inputs["input_ids"].shape[1], whole["input_ids"]
    visual = visual_token_mask(model.config, ids)[0]
    segments = segment_ids(model.config, ids, None, prompt)[0]
    recorded = eager_weights_and_values(model, whole, layer, masks)
    mass = measure_attention(model, inputs, ANSWER, layer)
    maps = [measure_attention_map(model, inputs, ANSWER, token, layer) for token in (None, 0, 2)]
    assert len(mass.contribution) == len(mass.cosine) == 1 + len(ANSWER)
    assert set(range(mass.layers)) - set(recorded) == set(without)
    for index in range(mass.layers):
        if index in without:
            assert {row[index] for row in (*mass.contribution, *mass.cosine)} == {None}
            assert all(np.isnan(one.contribution[index]).all() for one in maps)
            continue
        weights, values = recorded[index]
        for query in range(1 + len(ANSWER)):
            shares, cosine = expected(weights[:, prompt - 1 + query], values, visual)
            of_segments = [float(shares[segments == number].sum()) for number in range(len(mass.segments))]
            assert mass.contribution[query][index] == pytest.approx(of_segments, abs=1e-5)
            assert sum(mass.contribution[query][index]) == pytest.approx(1, abs=1e-5)
            assert mass.cosine[query][index] == pytest.approx(float(cosine), abs=1e-5)
            if query != 2:
                drawn = maps[{0: 0, 1: 1, 3: 2}[query]].contribution[index]
                np.testing.assert_allclose(drawn, shares[visual].numpy(), atol=1e-5, rtol=0)
    if layer is not None and layer < mass.layers:
        image = mass.segments.index("image")
        assert all(row[-1][image] == 0 and row[-1] is not None for row in mass.contribution)
        assert all(row[-1] == pytest.approx(1, abs=1e-6) for row in mass.cosine)
    json.dumps([mass.to_json(), *(one.to_json() for one in maps)], allow_nan=False)
    return mass


@pytest.mark.parametrize("layer", [None, 4])
def test_the_authors_model(layer):
    mass = check(golden.build_model(), golden.inputs(), layer)
    assert min(mass.cosine[0][:4]) < 0.999  # the visual tokens do something in it


@pytest.mark.parametrize("layer", [None, 2])
@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3n"])
def test_grouped_key_value_heads_and_shared_keys(name, layer):
    tiny = build(name)
    config = tiny.model.get_decoder().config
    assert name == "llava" or config.num_attention_heads > config.num_key_value_heads
    check(tiny.model, tiny.prompt([1, "image", 2, 3, "image", 4, 5]), layer)


# A masked token would stay in a recurrent layer's state, and among those that mistral_large4's indexer chooses.
@pytest.mark.parametrize("layer", [None, 1, 3])
@pytest.mark.parametrize(("name", "without"), [("qwen3_5", (0, 2)), ("mistral_large4", ())])
def test_layers_without_attention_leave_gaps_and_values_may_have_another_width(name, without, layer):
    tiny = build(name)
    check(tiny.model, tiny.prompt([1, "image", 2, 3, 4]), layer, without, masks=False)


def test_long_answers_come_in_blocks(monkeypatch):
    tiny = build("llava")
    inputs = tiny.prompt([1, "image", 2, 3])
    whole = measure_attention(tiny.model, inputs, ANSWER)
    monkeypatch.setattr("vtw_demo.withdrawal.attention_capture._ROWS_AT_ONCE", 3)
    blocks = measure_attention(tiny.model, inputs, ANSWER)
    np.testing.assert_allclose(np.array(blocks.contribution), np.array(whole.contribution), atol=1e-6)
    np.testing.assert_allclose(np.array(blocks.cosine), np.array(whole.cosine), atol=1e-6)
