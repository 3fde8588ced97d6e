"""Attention maps against the full matrices of eager attention, on small random models of several families."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from tests.families import IMAGE, LAYERS
from tests.oracles import visual_keys_blocked
from tests.tiny_models import build
from vtw_demo.measurements.attention import AttentionMap, measure_attention, measure_attention_map
from vtw_demo.withdrawal.segments import visual_token_mask
from vtw_demo.withdrawal.withdraw import withdraw

FAMILIES = [
    "llava",
    "llava_next",
    "gemma3 (window shorter than the prompt)",
    "paligemma",
    "qwen2_vl",
    "gemma3n",  # whose last layers use the keys of earlier ones
    "gemma4",
]
WITHOUT_ATTENTION = {"qwen3_5": (0, 2), "lfm2_vl": (0, 3), "nemotron_h_omni": (0, 1, 3), "mistral_large4": ()}
"""Families, and which of their layers don't attend."""
PROMPTS = {
    "one image": [1, 2, "image", 3, 4, 5],
    "image first": ["image", 3, 4],
    "several images": [1, "image", 2, 3, "image", "image", 4, 5],
}
ANSWER = [11, 12, 13]


def with_answer(inputs, count):
    """The inputs followed by so many of the answer's tokens."""
    answer = torch.tensor([ANSWER])[:, :count]
    followed = {**inputs, "input_ids": torch.cat([inputs["input_ids"], answer], dim=1)}
    followed["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(answer)], dim=1)
    for name in inputs.keys() & {"token_type_ids", "mm_token_type_ids"}:
        # In paligemma 1 is what attends to what came before only; elsewhere it is an image.
        answer_type = int(not inputs[name].any())
        followed[name] = torch.cat([inputs[name], torch.full_like(answer, answer_type)], dim=1)
    return followed


def eager_matrices(model, inputs):
    """Full attention matrices of all layers that attend, mean over heads, each (sequence, sequence)."""
    config = model.get_decoder().config
    before = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        with torch.no_grad():
            return [matrix[0].mean(0) for matrix in model(**inputs, output_attentions=True).attentions]
    finally:
        config._attn_implementation = before


def blocked_matrices(model, inputs, layer):
    """The same where layers from `layer` on see no visual token, though nothing is taken out."""
    matrices = []
    handles = [
        block.self_attn.register_forward_hook(lambda module, args, output: matrices.append(output[1][0].mean(0)))
        for block in model.get_decoder().layers
    ]
    try:
        with torch.no_grad(), visual_keys_blocked(model, layer, visual_token_mask(model.config, inputs["input_ids"])):
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(matrices)


def expected_weights(model, inputs, layer, answer_token):
    whole = with_answer(inputs, 0 if answer_token is None else len(ANSWER))
    matrices = torch.stack(eager_matrices(model, whole)) if layer is None else blocked_matrices(model, whole, layer)
    row = inputs["input_ids"].shape[1] - 1 + (0 if answer_token is None else answer_token + 1)
    return matrices[:, row, visual_token_mask(model.config, whole["input_ids"])[0]].numpy()


@pytest.mark.parametrize("layer", [None, 1, 2, LAYERS])
@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_map_equals_full_matrices(name, kind, layer):
    """Withdrawn, the matrices of a model whose attention to visual keys is blocked."""
    tiny = build(name)
    inputs = tiny.prompt(PROMPTS[kind])
    for answer_token in (None, 0, 2):
        measured = measure_attention_map(tiny.model, inputs, ANSWER, answer_token, layer)
        expected = expected_weights(tiny.model, inputs, layer, answer_token)
        np.testing.assert_allclose(measured.weights, expected, atol=1e-5, rtol=0)
        assert not measured.weights.flags.writeable
        assert measured.weights.shape == (LAYERS, PROMPTS[kind].count("image") * tiny.counts["image"])
        assert measured.weights[:layer].any(1).all()
        assert (measured.answer_token, measured.withdrawal_layer) == (answer_token, layer)


@pytest.mark.parametrize("layer", [None, 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_layers_sum_to_the_images_attention_mass(name, layer):
    tiny = build(name)
    inputs = tiny.prompt(PROMPTS["several images"])
    mass = measure_attention(tiny.model, inputs, ANSWER, layer=layer)
    image = mass.segments.index("image")
    queries = {None: mass.last_prompt, **dict(enumerate(mass.answer))}
    assert len(queries) == 1 + len(ANSWER)
    for answer_token, query in queries.items():
        measured = measure_attention_map(tiny.model, inputs, ANSWER, answer_token, layer)
        expected = [shares[image] for shares in query]
        np.testing.assert_allclose(measured.weights.sum(1), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layer", [None, 1, 3])
@pytest.mark.parametrize("name", WITHOUT_ATTENTION)
def test_layers_that_do_not_attend_are_left_out(name, layer):
    """The others are measured as eager attention has them, in the same run."""
    tiny = build(name)
    inputs = tiny.prompt(PROMPTS["several images"])
    mass = measure_attention(tiny.model, inputs, ANSWER, layer=layer)
    measured = measure_attention_map(tiny.model, inputs, ANSWER, 0, layer)
    without = WITHOUT_ATTENTION[name]
    assert mass.layers_without_attention == measured.layers_without_attention == len(without)
    assert [index for index, shares in enumerate(mass.last_prompt) if shares is None] == list(without)
    assert [index for index, shares in enumerate(mass.answer_mean) if shares is None] == list(without)
    assert np.isnan(measured.weights).all(1).nonzero()[0].tolist() == list(without)
    assert [row is None for row in measured.to_json()["weights"]] == [index in without for index in range(LAYERS)]
    json.dumps([mass.to_json(), measured.to_json()], allow_nan=False)
    whole = with_answer(inputs, len(ANSWER))
    visual = visual_token_mask(tiny.model.config, whole["input_ids"])[0]
    with withdraw(tiny.model, layer or LAYERS):
        matrices = iter(eager_matrices(tiny.model, whole))
    image = mass.segments.index("image")
    for index in sorted({*range(LAYERS)} - {*without}):
        matrix = next(matrices)
        if layer is not None and index >= layer:
            assert matrix.shape[-1] == (~visual).sum()
            assert not measured.weights[index].any()
        else:
            np.testing.assert_allclose(measured.weights[index], matrix[-3, visual].numpy(), atol=1e-5, rtol=0)
        first = mass.segments.index("first token")
        assert mass.answer[0][index][first] == pytest.approx(matrix[-3, 0].item(), abs=1e-5)
        assert mass.answer[0][index][image] == pytest.approx(measured.weights[index].sum(), abs=1e-5)
        assert sum(mass.last_prompt[index]) == pytest.approx(1)


def test_padding_on_the_left_changes_nothing():
    tiny = build("llava")
    row = PROMPTS["one image"]
    inputs = tiny.prompt(row)
    padded = tiny.prompt([7] * 9 + row[:2] + row[3:], row)
    padded = {name: tensor[1:] for name, tensor in padded.items() if name != "pixel_values"}
    padded["pixel_values"] = inputs["pixel_values"]
    assert not padded["attention_mask"].all()
    for layer in (None, 2):
        plain, left = (measure_attention_map(tiny.model, given, ANSWER, 1, layer) for given in (inputs, padded))
        np.testing.assert_allclose(left.weights, plain.weights, atol=1e-5, rtol=0)


def test_answers_as_tensors_and_none():
    tiny = build("llava")
    inputs = tiny.prompt(PROMPTS["one image"])
    expected = measure_attention_map(tiny.model, inputs, ANSWER, 1).weights
    for answer in (torch.tensor(ANSWER), torch.tensor([ANSWER])):
        assert np.array_equal(measure_attention_map(tiny.model, inputs, answer, 1).weights, expected)
    alone = measure_attention_map(tiny.model, inputs)
    assert np.array_equal(alone.weights, measure_attention_map(tiny.model, inputs, ANSWER).weights)
    assert not np.array_equal(alone.weights, expected)


@pytest.mark.parametrize("layer", [None, 2])
def test_the_model_is_left_as_it_was(layer):
    tiny = build("llava")
    model, inputs = tiny.model, tiny.prompt(PROMPTS["one image"])

    def state():
        hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]
        return hooks, model.get_decoder().config._attn_implementation, model.training

    with torch.no_grad():
        logits = model(**inputs).logits
    before, parameters = state(), [parameter.clone() for parameter in model.parameters()]
    measured = measure_attention_map(model, inputs, ANSWER, 0, layer)
    assert state() == before
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, logits)
    assert all(map(torch.equal, parameters, model.parameters()))

    def fail(*args):
        raise KeyboardInterrupt

    handle = model.get_decoder().layers[-1].register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        measure_attention_map(model, inputs, ANSWER, 0, layer)
    handle.remove()
    assert state() == before
    assert np.array_equal(measure_attention_map(model, inputs, ANSWER, 0, layer).weights, measured.weights)


@pytest.mark.parametrize(
    ("answer", "answer_token", "message"),
    [
        (ANSWER, 3, "The answer has 3 tokens, counted from 0; there is no token 3"),
        (ANSWER, -1, "there is no token -1"),
        (None, 0, "The answer has 0 tokens"),
        ([3.5], 0, "must be integers"),
        ([3, IMAGE], 1, "placeholder of an image"),
        ([[3, 4], [5, 6]], 0, r"integers of the shape \(1, answer tokens\)"),
    ],
)
def test_bad_answers(answer, answer_token, message):
    tiny = build("llava")
    with pytest.raises(ValueError, match=message):
        measure_attention_map(tiny.model, tiny.prompt(PROMPTS["one image"]), answer, answer_token)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "no input_ids"),
        ({"input_ids": torch.tensor([[1, 2, 3]])}, "no visual tokens"),
        ({"input_ids": torch.tensor([[1, IMAGE, 3]] * 2)}, r"one prompt at a time.*\(2, 3\)"),
        ({"input_ids": torch.tensor([[1, IMAGE, 3]]), "attention_mask": torch.tensor([[1, 1, 0]])}, "on the right"),
    ],
)
def test_bad_prompts(inputs, message):
    with pytest.raises(ValueError, match=message):
        measure_attention_map(build("llava").model, inputs)


def test_withdrawal_from_a_prompt_that_ends_with_a_visual_token():
    tiny = build("llava")
    with pytest.raises(ValueError, match="ends with a visual token"):
        measure_attention_map(tiny.model, tiny.prompt([1, 2, "image"]), layer=2)


@pytest.mark.parametrize("layer", [0, LAYERS + 1])
def test_bad_layers(layer):
    tiny = build("llava")
    with pytest.raises(ValueError, match="withdrawal layer must be"):
        measure_attention_map(tiny.model, tiny.prompt(PROMPTS["one image"]), layer=layer)


WEIGHTS = np.array([[0.25, 0.5, 0.0], [0.0, 0.0, 0.0]], dtype=np.float32)


def test_result_is_immutable_plain_data():
    measured = AttentionMap(WEIGHTS, None, 1, WEIGHTS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        measured.answer_token = 2
    assert measured.layers == 2
    assert json.loads(json.dumps(measured.to_json())) == {
        "weights": [[0.25, 0.5, 0.0], [0.0, 0.0, 0.0]],
        "answer_token": None,
        "withdrawal_layer": 1,
        "contribution": [[0.25, 0.5, 0.0], [0.0, 0.0, 0.0]],
        "sinks": None,
        "recipe": None,
    }
