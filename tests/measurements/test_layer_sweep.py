"""Every K in one pass gives what a pass for each K gives: the golden numbers, and the oracle that removes nothing."""

from contextlib import nullcontext
from unittest import mock

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div
from torch.utils.flop_counter import FlopCounterMode

from tests.families import BRANCHES, FAMILIES, LAYERS, SPECIAL
from tests.further_families import MORE
from tests.golden import GOLDEN
from tests.grids import nightly_but
from tests.oracles import flash_attention_stand_in
from tests.tiny_models import PROMPTS, build, make, oracle, prompts_of
from vtw_demo.measurements.layer_sweep import choose_layer, sweep
from vtw_demo.withdrawal.architectures import find_decoder
from vtw_demo.withdrawal.segments import visual_token_mask
from vtw_demo.withdrawal.withdraw import withdraw

ANSWER = torch.tensor([[11, 12, 13], [14, 15, 16], [17, 18, 19], [20, 21, 22]])


def tiny_model(family, attention="sdpa"):
    tiny = build(family)
    tiny.model.set_attn_implementation(attention)
    return tiny


def divergence(withdrawn, full):
    return kl_div(full.log_softmax(-1), withdrawn.softmax(-1), reduction="none").sum(-1)


@torch.no_grad()
def logits_by_oracle(tiny, inputs, layer, positions=1):
    """(batch, positions, vocabulary): the last positions' logits."""
    visual = visual_token_mask(tiny.model.config, inputs["input_ids"])
    with oracle(tiny, layer, visual) if layer < LAYERS else nullcontext():
        return tiny.model(**inputs).logits[:, -positions:].float()


def with_answer(inputs, answer, token_type=0):
    """Inputs whose prompts are followed by these answers."""
    ids = torch.cat([inputs["input_ids"], answer], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(answer)], dim=1)
    types = {
        name: torch.cat([value, torch.full_like(answer, token_type)], dim=1)
        for name, value in inputs.items()
        if name.endswith("token_type_ids")
    }
    return {**inputs, "input_ids": ids, "attention_mask": mask, **types}


def state(model):
    """What a sweep must leave as it was."""
    hooks = [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.modules()]
    own_forwards = [name for name, part in model.named_modules() if "forward" in vars(part)]
    return hooks, own_forwards, [parameter.sum().item() for parameter in model.parameters()]


def test_golden(golden_model, golden_inputs):
    swept = sweep(golden_model, golden_inputs)
    assert swept.layers == tuple(range(1, 8))
    np.testing.assert_allclose(swept.kl[0, 4:].numpy(), GOLDEN["kl_from5"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(swept.full_logits[0].numpy(), GOLDEN["full_logits"][0], atol=1e-4, rtol=0)
    for layer in swept.layers:
        expected = GOLDEN[f"keep_{layer}_logits"][0]
        np.testing.assert_allclose(swept.logits[0, layer - 1].numpy(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("family", "name"),
    nightly_but(
        [(family, name) for family in BRANCHES for name in prompts_of(family)],
        [(family, name) for family in FAMILIES for name in prompts_of(family)],
    ),
)
def test_families(family, name, attention):
    tiny = tiny_model(family, attention)
    inputs = tiny.prompt(*PROMPTS[name])
    swept = sweep(tiny.model, inputs)
    full = logits_by_oracle(tiny, inputs, LAYERS)[:, -1]
    deviation = full.std()
    assert ((swept.full_logits - full).abs().max() / deviation) < 1e-4
    assert swept.layers == tuple(range(1, LAYERS))
    for layer in swept.layers:
        withdrawn = logits_by_oracle(tiny, inputs, layer)[:, -1]
        assert ((swept.logits[:, layer - 1] - withdrawn).abs().max() / deviation) < 1e-4
        torch.testing.assert_close(swept.kl[:, layer - 1], divergence(withdrawn, full), atol=1e-4, rtol=1e-4)
    if name != "no image":
        assert swept.kl.max() > 1e-3  # or nothing has been compared


def test_layers_that_hand_on_more_than_hidden_states():
    """As those of chameleon do, whose head knows tokens that an answer may not hold."""
    tiny = make(MORE["chameleon"])
    inputs = tiny.prompt(*PROMPTS["ragged batch"])
    swept = sweep(tiny.model, inputs)
    for layer in swept.layers:
        withdrawn = logits_by_oracle(tiny, inputs, layer)[:, -1]
        torch.testing.assert_close(swept.logits[:, layer - 1], withdrawn, atol=1e-4, rtol=1e-4)


def test_an_answers_tokens_are_text_to_experts_of_pictures_too():
    tiny = make(MORE["ernie4_5_vl_moe"])
    inputs = tiny.prompt([1, "image", 2, 3])
    whole = with_answer(inputs, ANSWER[:1, :-1])
    assert whole["moe_mm_token_type_ids"].shape == whole["input_ids"].shape
    swept = sweep(tiny.model, inputs, ANSWER[:1])
    full = logits_by_oracle(tiny, whole, LAYERS, positions=3)
    for layer in swept.layers:
        expected = divergence(logits_by_oracle(tiny, whole, layer, positions=3), full)
        torch.testing.assert_close(swept.answer_kl[:, layer - 1], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", nightly_but(BRANCHES, FAMILIES))
def test_answer_tokens(family):
    tiny = tiny_model(family)
    rows = PROMPTS["ragged batch"]
    inputs = tiny.prompt(*rows)
    swept = sweep(tiny.model, inputs, ANSWER)
    # The last answer token predicts nothing that is asked for.
    whole = with_answer(inputs, ANSWER[:, :-1], token_type=int(family == "paligemma"))  # 1: its causal suffix
    full = logits_by_oracle(tiny, whole, LAYERS, positions=3)
    for layer in swept.layers:
        withdrawn = logits_by_oracle(tiny, whole, layer, positions=3)
        expected = divergence(withdrawn, full)
        torch.testing.assert_close(swept.answer_kl[:, layer - 1], expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(swept.answer_choices[:, layer - 1], withdrawn.argmax(-1))
    assert torch.equal(swept.answer_kl[..., 0], swept.kl)
    torch.testing.assert_close(swept.kl, sweep(tiny.model, inputs).kl, atol=1e-4, rtol=1e-4)


def test_answer_of_a_single_prompt():
    tiny = tiny_model("llava")
    inputs = tiny.prompt([1, "image", 2, 3])
    swept = sweep(tiny.model, inputs, [11, 12])
    assert swept.answer_kl.shape == swept.answer_choices.shape == (1, LAYERS - 1, 2)
    torch.testing.assert_close(swept.answer_kl, sweep(tiny.model, inputs, torch.tensor([[11, 12]])).answer_kl)
    assert sweep(tiny.model, inputs).answer_kl is None
    assert sweep(tiny.model, inputs, []).answer_kl.shape == (1, LAYERS - 1, 0)


@pytest.mark.parametrize("family", [name for name in ("llava", "qwen2_vl", "llama4") if name in FAMILIES])
def test_rows_of_one_length_with_different_numbers_of_visual_tokens(family):
    tiny = tiny_model(family)
    rows = [[1, 2, "image", 3, 4], [5, 6, 7]]
    length = tiny.prompt(rows[0])["input_ids"].shape[1]
    rows[1] += [8] * (length - 3)
    inputs = tiny.prompt(*rows)
    assert inputs["attention_mask"].all()
    swept = sweep(tiny.model, inputs)
    for layer in swept.layers:
        expected = logits_by_oracle(tiny, inputs, layer)[:, -1]
        torch.testing.assert_close(swept.logits[:, layer - 1], expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "family", [name for name in ("llava", "gemma3n", "gemma4", "llama4", "qwen2_vl") if name in FAMILIES]
)
@pytest.mark.parametrize("positions_at_once", [1, 30])
def test_chunks_change_nothing(family, positions_at_once):
    tiny = tiny_model(family)
    inputs = tiny.prompt(*PROMPTS["ragged batch"])
    in_chunks = sweep(tiny.model, inputs, ANSWER, positions_at_once=positions_at_once)
    at_once = sweep(tiny.model, inputs, ANSWER, positions_at_once=10**6)
    torch.testing.assert_close(in_chunks.logits, at_once.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(in_chunks.answer_kl, at_once.answer_kl, atol=1e-4, rtol=1e-4)


def test_no_layer_runs_on_more_than_the_full_sequence(golden_model, golden_inputs):
    positions = []
    handle = golden_model.model.language_model.layers[-1].register_forward_hook(
        lambda layer, args, output: positions.append(args[0].shape[0] * args[0].shape[1])
    )
    try:
        sweep(golden_model, golden_inputs, list(range(1, 40)))
    finally:
        handle.remove()
    answered = golden_inputs["input_ids"].shape[1] + 38
    assert max(positions) == answered
    assert len(positions) > 2


def test_cost(golden_model, golden_inputs):
    """One full prefill and the text streams, by torch's own count."""

    def flops(run):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run()
        return counter.get_total_flops()

    golden_model.set_attn_implementation("eager")  # the counter doesn't know the CPU's own attention kernel
    full = flops(lambda: golden_model(**golden_inputs, logits_to_keep=1))
    # The 35 tokens before the image are the same in all streams: only their keys and values are used again.
    layers, text, question, hidden, intermediate, vocabulary = 8, 52, 17, 32, 64, 90
    of_stream = 2 * question * hidden * (4 * hidden + 3 * intermediate) + 4 * question * text * hidden
    heads = 2 * hidden * vocabulary * layers  # of each K, and the full one again
    streams = sum(range(1, layers)) * of_stream
    try:
        # Older versions make rotations of positions by a small product.
        wanted = pytest.approx(full + streams + heads, rel=1e-6)
        assert flops(lambda: sweep(golden_model, golden_inputs)) == wanted
    finally:
        golden_model.set_attn_implementation("sdpa")


def test_flash_attention():
    tiny = build("llava")
    inputs = tiny.prompt(*PROMPTS["ragged batch"])
    tiny.model.set_attn_implementation("sdpa")
    expected = sweep(tiny.model, inputs).logits
    with flash_attention_stand_in(tiny.model):
        torch.testing.assert_close(sweep(tiny.model, inputs).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("quantization", [None, "4bit"])
def test_embedded_model(quantization):
    pytest.importorskip("bitsandbytes")
    from PIL import Image

    from vtw_demo import load

    vlm = load(quantization=quantization, device="cpu")
    inputs = vlm.prepare_batch(
        [(Image.new("RGB", (224, 224), "red"), "What do you see?"), (Image.new("RGB", (99, 50)), "Is there a star?")]
    )
    swept = sweep(vlm.model, inputs)
    for layer in (1, vlm.layers // 2, vlm.layers - 1):
        with torch.no_grad(), withdraw(vlm.model, layer):
            logits = vlm.model(**inputs, logits_to_keep=1).logits[:, -1].float()
        atol = rtol = 1e-4
        if quantization is not None:
            # Newer processors compute the products of 4-bit weights in bfloat16, whose error grows with the logits.
            atol, rtol = 0.02 * logits.std().item(), 5e-2
        torch.testing.assert_close(swept.logits[:, layer - 1], logits, atol=atol, rtol=rtol)


def test_bfloat16():
    tiny = build("llava", torch.bfloat16)
    inputs = tiny.prompt(*PROMPTS["one image"])
    swept = sweep(tiny.model, inputs)
    assert swept.logits.dtype == swept.kl.dtype == torch.float32
    with torch.no_grad(), withdraw(tiny.model, 2):
        logits = tiny.model(**inputs).logits[:, -1].float()
    assert ((swept.logits[:, 1] - logits).abs().max() / logits.std()) < 0.1


def test_without_visual_tokens():
    tiny = tiny_model("llava")
    swept = sweep(tiny.model, tiny.prompt([1, 2, 3]), [4, 5])
    assert swept.answer_kl.abs().max() == 0
    assert torch.equal(swept.logits, swept.full_logits[:, None].expand_as(swept.logits))


def test_model_is_left_as_it_was():
    tiny = tiny_model("llama4" if "llama4" in FAMILIES else "llava")
    inputs = tiny.prompt(*PROMPTS["one image"])
    before = state(tiny.model)
    first = sweep(tiny.model, inputs)
    assert state(tiny.model) == before
    head = tiny.model.get_output_embeddings()
    for broken in (find_decoder(tiny.model).layers[2].self_attn, head):
        with (
            mock.patch.object(type(broken), "forward", side_effect=RuntimeError("broken on purpose")),
            pytest.raises(RuntimeError, match="broken on purpose"),
        ):
            sweep(tiny.model, inputs)
        assert state(tiny.model) == before
    assert torch.equal(sweep(tiny.model, inputs).logits, first.logits)


def test_not_while_a_withdrawal_is_active():
    tiny = tiny_model("llava")
    inputs = tiny.prompt(*PROMPTS["one image"])
    with withdraw(tiny.model, 2), pytest.raises(RuntimeError, match="active on this LlavaForConditionalGeneration"):
        sweep(tiny.model, inputs)
    sweep(tiny.model, inputs)


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ([1, 2, "image"], {}, "ends with a visual token"),
        ([1, "image", 2], {"positions_at_once": 0}, "positions_at_once must be at least 1; this is 0"),
        ([1, "image", 2], {"answer_token_ids": [[1, 2], [3, 4]]}, r"integers of the shape \(1, answer tokens\)"),
        ([1, "image", 2], {"answer_token_ids": [3, SPECIAL[-1], 4]}, "placeholder of an image"),
    ],
)
def test_bad_arguments(row, options, message):
    tiny = tiny_model("llava")
    with pytest.raises(ValueError, match=message):
        sweep(tiny.model, tiny.prompt(row), **options)


def test_padding_on_the_right():
    tiny = tiny_model("llava")
    inputs = tiny.prompt([1, "image", 2, 3])
    inputs["attention_mask"][0, -1] = 0
    with pytest.raises(ValueError, match="padded on the right"):
        sweep(tiny.model, inputs)


@pytest.mark.parametrize(
    ("kl", "threshold", "chosen"),
    [
        ([[0.5, 0.002, 0.1, 0.0]], 0.003, 6),  # the first one, though a later one is above again
        ([[0.5, 0.003, 0.1, 0.0]], 0.003, 6),
        ([[0.0, 0.0, 0.1, 0.1], [0.0, 0.01, 0.1, 0.0]], 0.003, 5),
        ([[0.1, 0.004, 0.0, 0.0], [0.1, 0.001, 0.0, 0.0]], 0.003, 6),  # the mean counts
        ([0.1, 0.1, 0.1, 0.002], 0.003, 8),
        ([[0.1, 0.1, 0.1, 0.1]], 0.003, None),
        ([[float("nan"), 0.1, 0.0, 0.1]], 0.003, 7),
    ],
)
def test_choose_layer(kl, threshold, chosen):
    assert choose_layer((5, 6, 7, 8), kl, threshold) == chosen
    assert choose_layer(range(5, 9), torch.tensor(kl), threshold) == chosen


def test_choose_layer_with_the_golden_divergences():
    assert choose_layer((5, 6, 7), GOLDEN["kl_from5"][None], threshold=float(GOLDEN["kl_from5"][1])) == 6


@pytest.mark.parametrize(
    ("kl", "threshold", "message"),
    [
        ([[0.1, 0.2, 0.3]], 0.003, r"kl has the shape \(1, 3\), for 2 layers"),
        ([], 0.003, "kl has the shape"),
        ([[0.1, 0.2]], -1.0, "threshold must be a number from 0 on"),
        ([[0.1, 0.2]], float("nan"), "threshold must be a number from 0 on"),
    ],
)
def test_choose_layer_with_bad_arguments(kl, threshold, message):
    with pytest.raises(ValueError, match=message):
        choose_layer((1, 2), kl, threshold)
