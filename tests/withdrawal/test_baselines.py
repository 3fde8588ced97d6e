"""The ablations against the authors' numbers, and against blocking what is removed."""

import numpy as np
import pytest
import torch

from tests.families import FAMILIES, LAYERS
from tests.golden import GOLDEN
from tests.oracles import visual_keys_blocked
from tests.tiny_models import OPTIONS, PROMPTS, TinyModel, build, oracle, prompts_of
from vtw_demo.withdrawal.baselines import blind, remove_at_random, withdraw_renumbered
from vtw_demo.withdrawal.segments import visual_token_mask
from vtw_demo.withdrawal.withdraw import withdraw

SEEDS = {"one image": ("a",), "several images": ("a",), "ragged batch": ("a", "b")}


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


@pytest.mark.parametrize("layer", range(1, LAYERS))
@pytest.mark.parametrize("kind", SEEDS)
def test_random_removal_equals_masking_what_left(llava, kind, layer):
    inputs, seeds = llava.prompt(*PROMPTS[kind]), [f"seed {row}" for row in range(len(PROMPTS[kind]))]
    with remove_at_random(llava.model, layer, seeds):
        out = llava.model.generate(**inputs, **OPTIONS)
        with torch.no_grad():
            again = llava.model(**inputs, logits_to_keep=1).logits[:, -1]
    torch.testing.assert_close(out.logits[0], again)  # one draw a row, from its seed alone
    left = left_at(llava, inputs, layer, seeds)
    with visual_keys_blocked(llava.model, layer, left):
        expected = llava.model.generate(**inputs, **OPTIONS)
    assert torch.equal(out.sequences, expected.sequences)
    logits, expected_logits = torch.stack(out.logits), torch.stack(expected.logits)
    assert (logits - expected_logits).abs().max() < 1e-4 * expected_logits.std()


def left_at(tiny, inputs, layer, seeds):
    """Which tokens are gone after a draw: those that layer K hands on as they entered it."""
    states = []
    layers = tiny.model.get_decoder().layers[layer - 1 : layer + 1]
    handles = [one.register_forward_hook(lambda module, args, output: states.append(output)) for one in layers]
    try:
        with torch.no_grad(), remove_at_random(tiny.model, layer, seeds):
            tiny.model(**inputs, output_hidden_states=True)
    finally:
        for handle in handles:
            handle.remove()
    left = (states[0] == states[1]).all(-1) & inputs["attention_mask"].bool()
    visual = visual_token_mask(tiny.model.config, inputs["input_ids"])
    assert torch.equal(left.sum(1), visual.sum(1))
    assert not left[:, -1].any()
    assert not torch.equal(left, visual)
    return left


def test_random_removal_wants_a_seed_a_row(llava):
    with pytest.raises(ValueError, match="there are 1 for 4 rows"), remove_at_random(llava.model, 2, ["one"]):
        llava.model(**llava.prompt(*PROMPTS["ragged batch"]))


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
        ("qwen3_vl", lambda model: remove_at_random(model, 2, ["a"])),
        ("qwen2_5_vl", lambda model: withdraw_renumbered(model, 2)),
        ("gemma3n", lambda model: withdraw_renumbered(model, 2)),
    ],
)
def test_models_in_which_it_means_nothing_are_refused(name, context):
    with pytest.raises(ValueError, match=r"in decoders like|from decoders like|where they count|where all layers"):
        context(build(name).model).__enter__()


@pytest.mark.parametrize("context", [blind, lambda model: remove_at_random(model, 2, ["a"])])
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
