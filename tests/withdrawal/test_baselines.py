"""Withdrawal with one thing changed, against the authors' numbers and against masking."""

import numpy as np
import pytest
import torch

from tests.families import FAMILIES, LAYERS
from tests.golden import GOLDEN
from tests.tiny_models import OPTIONS, PROMPTS, TinyModel, build, oracle, prompts_of
from vtw_demo.withdrawal.baselines import blind, withdraw_renumbered
from vtw_demo.withdrawal.segments import visual_token_mask
from vtw_demo.withdrawal.withdraw import withdraw


@pytest.fixture(scope="module")
def llava() -> TinyModel:
    return build("llava")


@pytest.mark.parametrize("layer", range(1, 8))
def test_renumbered_positions_are_those_of_the_authors(golden_model, golden_inputs, layer):
    with withdraw_renumbered(golden_model, layer):
        out = golden_model.generate(
            **golden_inputs, max_new_tokens=12, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    assert out.sequences[0, 628:].tolist() == GOLDEN[f"shrink_{layer}_tokens"].tolist()
    np.testing.assert_allclose(torch.cat(out.logits).numpy(), GOLDEN[f"shrink_{layer}_logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_blind_equals_masking_the_picture_everywhere(name):
    tiny = build(name)
    for kind in set(prompts_of(name)) & {"one image", "several images"}:
        inputs = tiny.prompt(*PROMPTS[kind])
        with oracle(tiny, 0, visual_token_mask(tiny.model.config, inputs["input_ids"])):
            expected = tiny.model.generate(**inputs, **OPTIONS)
        with blind(tiny.model):
            out = tiny.model.generate(**inputs, **OPTIONS)
        assert torch.equal(out.sequences, expected.sequences)


def test_blind_answers_alike_whatever_is_shown(llava):
    inputs = llava.prompt(*PROMPTS["one image"])
    other = {**inputs, "pixel_values": inputs["pixel_values"].flip(-1) + 1}
    with torch.no_grad(), blind(llava.model):
        assert torch.equal(llava.model(**inputs).logits[:, -1], llava.model(**other).logits[:, -1])
    with torch.no_grad():
        assert not torch.equal(llava.model(**inputs).logits[:, -1], llava.model(**other).logits[:, -1])


def test_renumbered_ragged_batch_is_its_rows_alone(llava):
    rows = PROMPTS["ragged batch"]
    with torch.no_grad(), withdraw_renumbered(llava.model, 2):
        together = llava.model(**llava.prompt(*rows), logits_to_keep=1).logits[:, -1]
        whole = llava.prompt(*rows)
        pictures = [row.count("image") for row in rows]
        starts = [sum(pictures[:number]) for number in range(len(rows))]
        for number, row in enumerate(rows):
            alone = llava.prompt(row)
            if pictures[number]:
                begin = starts[number]
                alone["pixel_values"] = whole["pixel_values"][begin : begin + pictures[number]]
            one = llava.model(**alone, logits_to_keep=1).logits[0, -1]
            torch.testing.assert_close(together[number], one, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "context"),
    [
        ("qwen2_5_vl", lambda model: withdraw_renumbered(model, 2)),
        ("gemma3n", lambda model: withdraw_renumbered(model, 2)),
    ],
)
def test_models_in_which_it_means_nothing_are_refused(name, context):
    with pytest.raises(ValueError, match=r"in decoders like|from decoders like|where they count|where all layers"):
        context(build(name).model).__enter__()


@pytest.mark.parametrize("context", [blind, lambda model: withdraw_renumbered(model, 2)])
def test_the_model_is_left_as_it_was(llava, context):
    inputs = llava.prompt(*PROMPTS["one image"])
    with torch.no_grad():
        expected = llava.model(**inputs).logits
    with pytest.raises(KeyboardInterrupt), context(llava.model):
        raise KeyboardInterrupt
    with torch.no_grad(), withdraw(llava.model, LAYERS):
        assert torch.equal(llava.model(**inputs).logits, expected)
    with withdraw(llava.model, 2), pytest.raises(RuntimeError, match="active"):
        context(llava.model).__enter__()
