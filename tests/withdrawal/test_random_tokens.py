"""Random removal against blocking what left."""

import pytest
import torch

from tests.families import BRANCHES, LAYERS
from tests.oracles import visual_keys_blocked
from tests.recipes import check_same
from tests.tiny_models import OPTIONS, PROMPTS, TinyModel, build, oracle
from vtw_demo import random_tokens
from vtw_demo.withdrawal.segments import visual_token_mask


@pytest.fixture(scope="module")
def llava() -> TinyModel:
    return build("llava")


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("kind", ["one image", "several images", "ragged batch"])
@pytest.mark.parametrize("name", ["llava", "gemma3 (window shorter than the prompt)", "qwen3_vl", "gemma3n", "llama4"])
def test_it_equals_masking_what_left(name, kind, layer):
    tiny = build(name)
    inputs, seeds = tiny.prompt(*PROMPTS[kind]), [f"seed {row}" for row in range(len(PROMPTS[kind]))]
    with random_tokens(tiny.model, layer, seed=seeds):
        out = tiny.model.generate(**inputs, **OPTIONS)
        with torch.no_grad():
            again = tiny.model(**inputs, logits_to_keep=1).logits[:, -1]
    torch.testing.assert_close(out.logits[0][:, : again.shape[1]], again, atol=1e-4, rtol=1e-4)
    with visual_keys_blocked(tiny.model, layer, left_at(tiny, inputs, layer, 0.0, seeds)):
        check_same(out, tiny.model.generate(**inputs, **OPTIONS))


def left_at(tiny, inputs, layer, keep, seeds):
    """Which tokens are gone after a draw: those whose keys no cache position of layer K holds."""
    with torch.no_grad(), random_tokens(tiny.model, layer, keep, seeds):
        positions = tiny.model(**inputs, use_cache=True).past_key_values.layers[layer].positions
    attended = inputs["attention_mask"].bool()
    held = torch.zeros_like(attended)
    for row, (at, valid) in enumerate(zip(positions.held, positions.among(positions).valid, strict=True)):
        held[row, at[valid]] = True
    left = attended & ~held
    visual = visual_token_mask(tiny.model.config, inputs["input_ids"])
    assert left.sum(1).tolist() == [count - int(keep * count + 0.5) for count in visual.sum(1).tolist()]
    assert not left[:, -1].any()
    assert not torch.equal(left, visual)
    return left


@pytest.mark.parametrize("name", [name for name in BRANCHES if not build(name).family.masks])
def test_where_masking_is_not_removing(name):
    tiny = build(name)
    inputs = tiny.prompt(*PROMPTS["ragged batch"])
    left = left_at(tiny, inputs, LAYERS - 1, 0.5, "a seed")
    with torch.no_grad():
        with oracle(tiny, LAYERS - 1, left):
            expected = tiny.model(**inputs).logits[:, -1]
        with random_tokens(tiny.model, LAYERS - 1, 0.5, "a seed"):
            logits = tiny.model(**inputs, use_cache=False).logits[:, -1]
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-4)


def test_a_draw_follows_from_its_seed(llava):
    inputs = llava.prompt(*[[1, 2, "image", "image", 3, 4, 5, 6, 7]] * 3)
    left = left_at(llava, inputs, 2, 0.25, ["a", "b", "a"])
    assert torch.equal(left[0], left[2])
    assert not torch.equal(left[0], left[1])
    assert torch.equal(left_at(llava, inputs, 2, 0.25, "a"), left[[0, 0, 0]])


def test_a_seed_a_row(llava):
    with pytest.raises(ValueError, match="there are 1 for 4 rows"), random_tokens(llava.model, 2, seed=["one"]):
        llava.model(**llava.prompt(*PROMPTS["ragged batch"]))
