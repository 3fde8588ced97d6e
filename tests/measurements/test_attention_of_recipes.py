"""Attention of runs whose tokens leave by a recipe, against eager attention in which what has left is masked."""

import sys

import numpy as np
import pytest
import torch

from tests.oracles import attention_implementation
from tests.tiny_models import build
from vtw_demo.errors import UserError
from vtw_demo.measurements.attention import measure_attention, measure_attention_map
from vtw_demo.measurements.equal_flops import schedule_of
from vtw_demo.withdrawal.cache import noted_positions
from vtw_demo.withdrawal.prune import prune
from vtw_demo.withdrawal.segments import segment_ids, visual_token_mask

ANSWER = [11, 12, 13]
PROMPT = [1, "image", 2, 3, "image", 4, 5]
RECIPES = (
    "1:fastv:0.5",
    "1:random_tokens:0.25",
    "0:uniform_grid:0.5",
    "1:pyramid_drop:0.5;2:pyramid_drop:0.25",
    "1:fastv:0.5;2:withdraw",
)


def left_by_layer(tiny, inputs, recipe):
    """Before each layer, bool, (prompt,): what has left when the prompt alone is read."""
    with torch.no_grad(), prune(tiny.model, recipe):
        cache = tiny.model(**inputs).past_key_values
    held, length = noted_positions(cache)[1], inputs["input_ids"].shape[1]
    left = [torch.zeros(length, dtype=torch.bool)] * len(tiny.model.get_decoder().layers)
    for first, positions in sorted(held.items()):
        gone = torch.ones(length, dtype=torch.bool)
        gone[positions.held[0]] = False
        left[first:] = [gone] * (len(left) - first)
    return left


def eager_weights(model, whole, left):
    from transformers.masking_utils import eager_mask

    found = {}

    def attention(module, query, key, value, attention_mask, **options):
        gone = torch.nn.functional.pad(left[module.layer_idx], (0, key.shape[2] - len(left[module.layer_idx])))
        attention_mask = attention_mask.masked_fill(gone, torch.finfo(attention_mask.dtype).min)
        output, weights = sys.modules[type(module).__module__].eager_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        found[module.layer_idx] = weights[0].mean(0).double()
        return output, weights

    with torch.no_grad(), attention_implementation(model, "recorded", attention, eager_mask):
        model(**whole)
    return found


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3"])
def test_it_is_that_of_the_prompts_choice_whatever_the_answer(name, recipe):
    tiny = build(name)
    inputs = tiny.prompt(PROMPT)
    prompt = inputs["input_ids"].shape[1]
    whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"], torch.tensor([ANSWER])], dim=1)}
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    for types in inputs.keys() & {"token_type_ids", "mm_token_type_ids"}:
        whole[types] = torch.nn.functional.pad(inputs[types], (0, len(ANSWER)))
    visual = visual_token_mask(tiny.model.config, whole["input_ids"])[0]
    segments = segment_ids(tiny.model.config, whole["input_ids"], None, prompt)[0]
    left = left_by_layer(tiny, inputs, recipe)
    assert left[-1].any()
    assert not left[-1].all()
    weights = eager_weights(tiny.model, whole, left)
    mass = measure_attention(tiny.model, inputs, ANSWER, recipe=recipe)
    maps = [measure_attention_map(tiny.model, inputs, ANSWER, token, recipe=recipe) for token in (None, 0, 1, 2)]
    assert {mass.recipe, *(one.recipe for one in maps)} == {recipe}
    for index in range(mass.layers):
        for query, shares in enumerate((mass.last_prompt, *mass.answer)):
            expected = weights[index][prompt - 1 + query]
            of_segments = [float(expected[segments == number].sum()) for number in range(len(mass.segments))]
            assert shares[index] == pytest.approx(of_segments, abs=1e-5)
            drawn = maps[query].weights[index]
            np.testing.assert_allclose(drawn, expected[visual].numpy(), atol=1e-5, rtol=0)
            assert not drawn[left[index][visual[:prompt]].numpy()].any()
    assert min(schedule_of(recipe)) == 0 or not left[0].any()


def test_a_layer_or_a_recipe():
    tiny = build("llava")
    with pytest.raises(UserError, match=r"this is layer 2 and recipe '1:fastv:0\.5'"):
        measure_attention(tiny.model, tiny.prompt(PROMPT), ANSWER, 2, "1:fastv:0.5")
    with pytest.raises(UserError, match="'1:fast' is no step of a recipe"):
        measure_attention(tiny.model, tiny.prompt(PROMPT), ANSWER, recipe="1:fast")
    with pytest.raises(UserError, match="ends with a visual token"):
        measure_attention(tiny.model, tiny.prompt([1, 2, "image"]), ANSWER, recipe="1:fastv:0.5")
