"""Probabilities against step-by-step generation, plain forward passes, and masking instead of removing."""

import json

import pytest
import torch

from tests.oracles import visual_keys_blocked
from vtw_demo.measurements.token_probabilities import AnswerProbabilities, AnswerToken, measure_answer_probabilities
from vtw_demo.withdrawal.segments import visual_token_mask
from vtw_demo.withdrawal.withdraw import withdraw

QUESTION = "What do you see?"


def generated(vlm, picture, layer, question=QUESTION, max_new_tokens=40):
    """An answer's tokens, and the probability of each as generation had it, step by step with the KV cache."""
    inputs = vlm.prepare(picture, question)
    with torch.no_grad(), withdraw(vlm.model, layer):
        out = vlm.generate(**inputs, max_new_tokens=max_new_tokens, output_logits=True, return_dict_in_generate=True)
    tokens = tuple(out.sequences[0, inputs["input_ids"].shape[1] :].tolist())
    steps = zip(out.logits, tokens, strict=True)
    return tokens, [logits[0].softmax(-1)[token].item() for logits, token in steps]


def forced(vlm, picture, tokens, layer, question=QUESTION):
    """The probabilities of an answer in the unmodified model, its visual keys masked from `layer` on."""
    inputs = vlm.prepare(picture, question)
    prompt = inputs["input_ids"].shape[1]
    input_ids = torch.cat([inputs["input_ids"], torch.tensor([tokens])], dim=1)
    with torch.no_grad(), visual_keys_blocked(vlm.model, layer, visual_token_mask(vlm.model.config, input_ids)):
        logits = vlm.model(input_ids=input_ids, pixel_values=inputs["pixel_values"]).logits[0]
    return [logits[prompt - 1 + index].softmax(-1)[token].item() for index, token in enumerate(tokens)]


def columns(answer):
    return [token.full for token in answer], [token.withdrawn for token in answer]


def test_answers_of_different_lengths(vlm, picture):
    layer = 1
    full_tokens, full = generated(vlm, picture, vlm.layers)
    withdrawn_tokens, withdrawn = generated(vlm, picture, layer)
    assert len(full_tokens) != len(withdrawn_tokens)
    measured = measure_answer_probabilities(vlm, vlm.prompt(picture, QUESTION), full_tokens, withdrawn_tokens, layer)
    of_full, of_withdrawn = columns(measured.full), columns(measured.withdrawn)
    assert of_full[0] == pytest.approx(full, abs=1e-4)
    assert of_withdrawn[1] == pytest.approx(withdrawn, abs=1e-4)
    assert of_full[1] == pytest.approx(forced(vlm, picture, full_tokens, layer), abs=1e-4)
    assert of_withdrawn[0] == pytest.approx(forced(vlm, picture, withdrawn_tokens, vlm.layers), abs=1e-4)
    first = measured.first_difference - 1
    assert full_tokens[:first] == withdrawn_tokens[:first]
    assert full_tokens[first] != withdrawn_tokens[first]
    # Each run chose its own token there.
    assert of_full[0][first] > of_withdrawn[0][first]
    assert of_withdrawn[1][first] > of_full[1][first]
    for answer, tokens in ((measured.full, full_tokens), (measured.withdrawn, withdrawn_tokens)):
        assert tuple(token.token_id for token in answer) == tokens
        assert "".join(token.text for token in answer).replace("(end)", "") == vlm.decode(tokens)
    assert measured.layer == layer
    json.dumps(measured.to_json())


def passes(vlm, measure):
    ran = []
    handle = vlm.model.get_decoder().register_forward_hook(lambda *_: ran.append(None))
    try:
        measured = measure()
    finally:
        handle.remove()
    return len(ran), measured


def test_equal_answers_take_two_passes(vlm, picture):
    tokens, full = generated(vlm, picture, vlm.layers, max_new_tokens=8)
    same, withdrawn = generated(vlm, picture, 8, max_new_tokens=8)
    assert tokens == same
    ran, measured = passes(
        vlm, lambda: measure_answer_probabilities(vlm, vlm.prompt(picture, QUESTION), tokens, list(same), 8)
    )
    assert ran == 2
    assert measured.first_difference is None
    assert measured.full == measured.withdrawn
    assert columns(measured.full)[0] == pytest.approx(full, abs=1e-4)
    assert columns(measured.full)[1] == pytest.approx(withdrawn, abs=1e-4)
    ran, _ = passes(
        vlm, lambda: measure_answer_probabilities(vlm, vlm.prompt(picture, QUESTION), tokens, tokens[:1], 8)
    )
    assert ran == 4


def test_answers_of_one_token(vlm, picture):
    question = "What color is the star?"
    (token,), (probability,) = generated(vlm, picture, vlm.layers, question, 1)
    (other,), (withdrawn,) = generated(vlm, picture, 1, question, 1)
    measured = measure_answer_probabilities(vlm, vlm.prompt(picture, question), [token], [other], 1)
    assert measured.first_difference == 1
    assert measured.full[0].full == pytest.approx(probability, abs=1e-4)
    assert measured.withdrawn[0].withdrawn == pytest.approx(withdrawn, abs=1e-4)
    assert measured.full[0].withdrawn == pytest.approx(forced(vlm, picture, [token], 1, question)[0], abs=1e-4)


def test_at_the_last_layer_both_are_the_same(vlm, picture):
    tokens, _ = generated(vlm, picture, vlm.layers, max_new_tokens=4)
    measured = measure_answer_probabilities(vlm, vlm.prompt(picture, QUESTION), tokens, tokens, vlm.layers)
    assert columns(measured.full)[0] == columns(measured.full)[1]


def hooks(model):
    return [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]


def test_the_model_is_left_as_it_was(vlm, picture):
    tokens, _ = generated(vlm, picture, vlm.layers, max_new_tokens=3)
    before = hooks(vlm.model)
    measured = measure_answer_probabilities(vlm, vlm.prompt(picture, QUESTION), tokens, tokens[:2], 5)
    assert hooks(vlm.model) == before

    def fail(*args):
        raise KeyboardInterrupt

    handle = vlm.model.get_decoder().layers[7].register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        measure_answer_probabilities(vlm, vlm.prompt(picture, QUESTION), tokens, tokens[:2], 5)
    handle.remove()
    assert hooks(vlm.model) == before
    assert measure_answer_probabilities(vlm, vlm.prompt(picture, QUESTION), tokens, tokens[:2], 5) == measured


@pytest.mark.parametrize(
    ("full", "withdrawn", "layer", "message"),
    [
        ([], [5], 3, "at least one token"),
        ([5], [], 3, "at least one token"),
        ([5], [5], 0, "withdrawal layer"),
        ([5], [5], 14, "withdrawal layer"),
    ],
)
def test_bad_arguments(vlm, picture, full, withdrawn, layer, message):
    with pytest.raises(ValueError, match=message):
        measure_answer_probabilities(vlm, vlm.prompt(picture, QUESTION), full, withdrawn, layer)


def test_an_answer_with_a_placeholder(vlm, picture):
    (placeholder,) = {vlm.model.config.image_token_id}
    with pytest.raises(ValueError, match="placeholder of an image"):
        measure_answer_probabilities(vlm, vlm.prompt(picture, QUESTION), [placeholder, 5], [5], 3)


def answer(*token_ids):
    # Two tokens that are parts of one character have the same text.
    return tuple(AnswerToken(token_id, "\N{REPLACEMENT CHARACTER}", 0.5, 0.25) for token_id in token_ids)


@pytest.mark.parametrize(
    ("full", "withdrawn", "first"),
    [((1, 2), (1, 2), None), ((1, 2), (1, 3), 2), ((1,), (2, 1), 1), ((1, 2), (1, 2, 3), 3), ((1, 2, 3), (1,), 2)],
)
def test_the_first_difference_is_of_tokens(full, withdrawn, first):
    assert AnswerProbabilities(4, answer(*full), answer(*withdrawn)).first_difference == first
