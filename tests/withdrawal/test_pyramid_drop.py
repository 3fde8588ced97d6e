"""PyramidDrop against blocking what it drops."""

import pytest
import torch

from tests.oracles import keys_blocked
from tests.recipes import check_same, left_by
from tests.tiny_models import OPTIONS, PROMPTS, TinyModel, build
from vtw_demo import pyramid_drop
from vtw_demo.errors import UserError


@pytest.fixture(scope="module")
def llava() -> TinyModel:
    return build("llava")


# A decoder of llama's, dimensions of positions, sliding windows, shared keys, features added between layers.
FAMILIES = ("llava", "qwen2_5_vl", "gemma3 (window shorter than the prompt)", "gemma3n", "qwen3_vl")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ["one image", "several images", "ragged batch"])
def test_stages_equal_masking(name, kind):
    tiny = build(name)
    inputs = tiny.prompt(*PROMPTS[kind])
    left = left_by(tiny, inputs, "1:pyramid_drop:0.5;2:pyramid_drop:0.25;3:pyramid_drop:0")
    with keys_blocked(tiny.model, left):
        expected = tiny.model.generate(**inputs, **OPTIONS)
    with pyramid_drop(tiny.model, {3: 0.0, 1: 0.5, 2: 0.25}):
        check_same(tiny.model.generate(**inputs, **OPTIONS), expected)


def test_what_has_left_does_not_come_back(llava):
    inputs = llava.prompt([1, "image", "image", 2, 3])
    left = left_by(llava, inputs, "1:pyramid_drop:0.5;2:pyramid_drop:0.25")
    assert (left[1] & ~left[2]).sum() == 0
    assert [int(mask.sum()) for mask in left.values()] == [4, 6]
    with torch.no_grad(), pyramid_drop(llava.model, {1: 0.5, 2: 0.25}):
        cache = llava.model(**inputs, use_cache=True).past_key_values
    full = inputs["input_ids"].shape[1]
    assert [layer.keys.shape[-2] for layer in cache.layers] == [full, full - 4, full - 6, full - 6]


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ({}, "no layer before which tokens are to leave"),
        ({1: 0.25, 2: 0.5}, "pyramid_drop at layer 2 is to keep 0.5 of the visual tokens, and only 0.25"),
        ({0: 0.5}, "layer of pyramid_drop must be from 1 to 3"),
        ({1: 1.5}, "from 0 to 1; this is 1.5"),
    ],
)
def test_stages_that_mean_nothing_are_refused(llava, stages, said):
    with pytest.raises(UserError, match=said):
        pyramid_drop(llava.model, stages).__enter__()
