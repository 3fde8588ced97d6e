"""Attention mass against the full matrices of eager attention, on small random models."""

import dataclasses
import json
import threading

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from tests.golden import IMAGE, LAYERS, VISUAL, random_llava
from tests.oracles import visual_keys_blocked
from vtw_demo.measurements.attention import AttentionMass, measure_attention
from vtw_demo.withdrawal.segments import Segment
from vtw_demo.withdrawal.withdraw import withdraw

SEGMENTS = ("first token", "system text", "image", "question", "answer")
ANSWER = [11, 12, 13]


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    return random_llava()


def prompt(*parts: int | str, padding: int = 0, mask: bool = True) -> dict[str, torch.Tensor]:
    """The inputs of one prompt, in which "image" stands for a picture."""
    ids = [token for part in parts for token in ([IMAGE] * VISUAL if part == "image" else [part])]
    inputs = {"input_ids": torch.tensor([[0] * padding + ids])}
    if mask:
        inputs["attention_mask"] = torch.tensor([[0] * padding + [1] * len(ids)])
    if "image" in parts:
        generator = torch.Generator().manual_seed(1)
        inputs["pixel_values"] = torch.randn(parts.count("image"), 3, 8, 8, generator=generator)
    return inputs


FIRST, SYSTEM, PICTURE, QUESTION = ([index] for index in range(4))
PROMPTS = {
    "image in the middle": (
        prompt(1, 2, 3, "image", 4, 5, 6),
        FIRST + SYSTEM * 2 + PICTURE * VISUAL + QUESTION * 3,
    ),
    "image first": (prompt("image", 4, 5, 6), PICTURE * VISUAL + QUESTION * 3),
    "several images": (
        prompt(1, 7, "image", 2, "image", "image", 3, 4),
        FIRST + SYSTEM + PICTURE * VISUAL + QUESTION + PICTURE * 2 * VISUAL + QUESTION * 2,
    ),
    "no image": (prompt(1, 2, 3, 4), FIRST + QUESTION * 3),
    "no mask": (prompt(1, 2, "image", 4, 5, mask=False), FIRST + SYSTEM + PICTURE * VISUAL + QUESTION * 2),
    "padded": (
        prompt(1, 2, 3, "image", 4, 5, padding=5),
        [-1] * 5 + FIRST + SYSTEM * 2 + PICTURE * VISUAL + QUESTION * 2,
    ),
}


def with_answer(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    answer = torch.tensor([ANSWER])
    extended = {**inputs, "input_ids": torch.cat([inputs["input_ids"], answer], dim=1)}
    if "attention_mask" in inputs:
        ones = torch.ones_like(answer)
        extended["attention_mask"] = torch.cat([inputs["attention_mask"], ones], dim=1)
    return extended


def shares_of(matrices, segments: list[int]) -> torch.Tensor:
    """(rows, layers, segments) of full matrices, each (heads, sequence, sequence), for the last rows."""
    rows = torch.stack([matrix.mean(0)[-len(ANSWER) - 1 :] for matrix in matrices], dim=1)
    where = torch.tensor([*segments, *[SEGMENTS.index("answer")] * len(ANSWER)])
    return torch.stack([rows[..., where == index].sum(-1) for index in range(len(SEGMENTS))], dim=-1)


def eager_matrices(model, inputs) -> list[torch.Tensor]:
    """Full attention matrices of all layers, each (heads, sequence, sequence)."""
    config = model.get_decoder().config
    before = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        with torch.no_grad():
            return [matrix[0] for matrix in model(**inputs, output_attentions=True).attentions]
    finally:
        config._attn_implementation = before


def blocked_matrices(model, inputs, layer) -> list[torch.Tensor]:
    """The same where layers from `layer` on see no visual token, though nothing is taken out."""
    matrices = []

    def keep(module, args, output):
        matrices.append(output[1][0])

    handles = [block.self_attn.register_forward_hook(keep) for block in model.get_decoder().layers]
    try:
        with torch.no_grad(), visual_keys_blocked(model, layer, inputs["input_ids"] == IMAGE):
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return matrices


def check(mass: AttentionMass, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    actual = torch.tensor([mass.last_prompt, *mass.answer])
    torch.testing.assert_close(actual, expected.float(), atol=tolerance, rtol=0)
    torch.testing.assert_close(actual.sum(-1), torch.ones(actual.shape[:2]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("key_value_heads", [1, 2, 4])
@pytest.mark.parametrize("name", PROMPTS)
def test_mass_equals_full_matrices(name, key_value_heads):
    model = random_llava(key_value_heads)
    inputs, segments = PROMPTS[name]
    mass = measure_attention(model, inputs, ANSWER)
    check(mass, shares_of(eager_matrices(model, with_answer(inputs)), segments))
    assert mass.segments == SEGMENTS
    assert mass.withdrawal_layer is None
    assert mass.visual_tokens == segments.count(PICTURE[0])


@pytest.mark.parametrize("layer", range(1, LAYERS + 1))
@pytest.mark.parametrize("name", PROMPTS)
def test_withdrawn_mass_equals_full_matrices_with_visual_keys_blocked(model, name, layer):
    inputs, segments = PROMPTS[name]
    mass = measure_attention(model, inputs, ANSWER, layer=layer)
    check(mass, shares_of(blocked_matrices(model, with_answer(inputs), layer), segments))
    image = SEGMENTS.index("image")
    for query in (mass.last_prompt, *mass.answer):
        for index in range(LAYERS):
            assert (query[index][image] == 0) == (index >= layer or name == "no image")
    assert mass.withdrawal_layer == layer


@pytest.mark.parametrize("layer", [None, 2])
def test_the_pass_does_what_a_plain_forward_pass_does(model, layer):
    """Its last logits, read at the head, are the bare model's, bit for bit."""
    inputs = PROMPTS["image in the middle"][0]
    seen = []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        measure_attention(model, inputs, ANSWER, layer=layer)
        with torch.no_grad(), withdraw(model, layer=layer or LAYERS):
            model(**with_answer(inputs), use_cache=False, logits_to_keep=1)
    finally:
        handle.remove()
    assert seen[0].shape[1] == 1
    assert torch.equal(*seen)


def test_prompt_alone(model):
    inputs = PROMPTS["image in the middle"][0]
    alone = measure_attention(model, inputs)
    assert alone.answer == alone.answer_mean == ()
    assert alone == measure_attention(model, inputs, []) == measure_attention(model, inputs, torch.tensor([]))
    # What comes later changes nothing before it.
    expected = torch.tensor(measure_attention(model, inputs, ANSWER).last_prompt)
    torch.testing.assert_close(torch.tensor(alone.last_prompt), expected)


def test_answer_mean(model):
    mass = measure_attention(model, PROMPTS["several images"][0], torch.tensor(ANSWER), layer=3)
    assert len(mass.answer) == len(ANSWER)
    torch.testing.assert_close(torch.tensor(mass.answer_mean), torch.tensor(mass.answer).mean(0))


def test_longer_answers_than_are_taken_at_once(model, monkeypatch):
    inputs = PROMPTS["padded"][0]
    expected = measure_attention(model, inputs, ANSWER, layer=2)
    monkeypatch.setattr("vtw_demo.withdrawal.attention_capture._ROWS_AT_ONCE", 3)
    mass = measure_attention(model, inputs, ANSWER, layer=2)
    torch.testing.assert_close(torch.tensor(mass.answer), torch.tensor(expected.answer))
    torch.testing.assert_close(torch.tensor(mass.last_prompt), torch.tensor(expected.last_prompt))


@pytest.mark.parametrize("layer", [None, 2])
def test_bfloat16(layer):
    inputs = dict(PROMPTS["image in the middle"][0])
    expected = measure_attention(random_llava(), inputs, ANSWER, layer=layer)
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    mass = measure_attention(random_llava().bfloat16(), inputs, ANSWER, layer=layer)
    check(mass, torch.tensor([expected.last_prompt, *expected.answer]), tolerance=0.1)
    # The first layer's queries and keys differ by rounding only, so its shares do too.
    check_first = [query[0] for query in mass.answer], [query[0] for query in expected.answer]
    torch.testing.assert_close(*map(torch.tensor, check_first), atol=0.02, rtol=0)


def test_token_types_are_continued_as_text(model, monkeypatch):
    inputs = PROMPTS["image in the middle"][0]
    types = (inputs["input_ids"] == IMAGE).long()
    seen = {}
    forward = model.model.forward

    def note(**kwargs):
        seen.update(kwargs)
        return forward(**{name: value for name, value in kwargs.items() if name != "mm_token_type_ids"})

    monkeypatch.setattr(model.model, "forward", note)
    measure_attention(model, {**inputs, "mm_token_type_ids": types}, ANSWER)
    assert seen["mm_token_type_ids"].tolist() == [types[0].tolist() + [0] * len(ANSWER)]


def state(model):
    """All that a measurement might leave behind on a model."""
    modules = dict(model.named_modules())
    return (
        {name: module.config._attn_implementation for name, module in modules.items() if hasattr(module, "config")},
        {
            name: (len(module._forward_hooks), len(module._forward_pre_hooks), set(vars(module)))
            for name, module in modules.items()
        },
        model.config.to_dict(),
        model.training,
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layer", [None, 2])
def test_model_is_left_as_it_was(attention, layer):
    model = random_llava()
    model.set_attn_implementation(attention)
    inputs = PROMPTS["image in the middle"][0]
    with torch.no_grad():
        logits = model(**inputs).logits  # first: a tower's first pass installs hooks of transformers' own
    before, parameters = state(model), [parameter.clone() for parameter in model.parameters()]
    towers = []
    handle = model.model.vision_tower.register_forward_pre_hook(
        lambda module, args: towers.append(module.config._attn_implementation)
    )
    mass = measure_attention(model, inputs, ANSWER, layer=layer)
    handle.remove()
    assert towers == [attention]
    assert state(model) == before
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, logits)
    assert all(map(torch.equal, parameters, model.parameters()))

    def fail(*args):
        raise KeyboardInterrupt

    handle = model.get_decoder().layers[3].register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        measure_attention(model, inputs, ANSWER, layer=layer)
    handle.remove()
    assert state(model) == before
    assert measure_attention(model, inputs, ANSWER, layer=layer) == mass


def test_measurements_in_several_threads_take_turns(model):
    inputs = PROMPTS["several images"][0]
    expected = [measure_attention(model, inputs, ANSWER, layer=layer) for layer in (None, 1, 2, 3)]
    found: list[AttentionMass | None] = [None] * 4
    before = state(model)

    def measure(index, layer):
        found[index] = measure_attention(model, inputs, ANSWER, layer=layer)

    threads = [threading.Thread(target=measure, args=pair) for pair in enumerate((None, 1, 2, 3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected
    assert state(model) == before


@pytest.mark.parametrize(
    ("inputs", "answer", "message"),
    [
        ({}, ANSWER, "no input_ids"),
        ({"input_ids": torch.ones(2, 3, dtype=torch.long)}, ANSWER, r"one prompt at a time.*\(2, 3\)"),
        ({"input_ids": torch.ones(3, dtype=torch.long)}, ANSWER, r"shape \(batch, prompt\).*\(3,\)"),
        (
            {"input_ids": torch.ones(1, 3, dtype=torch.long), "attention_mask": torch.tensor([[1, 1, 0]])},
            ANSWER,
            "padded on the right",
        ),
        (
            {"input_ids": torch.ones(1, 3, dtype=torch.long), "attention_mask": torch.ones(1, 4)},
            ANSWER,
            r"attention_mask has the shape \(1, 4\)",
        ),
        (prompt(1, 2), [[3, 4], [5, 6]], r"integers of the shape \(1, answer tokens\); these have the shape \(2, 2\)"),
        (prompt(1, 2), [3.5], "must be integers"),
        (prompt(1, 2), [3, IMAGE], "placeholder of an image"),
    ],
)
def test_bad_inputs(model, inputs, answer, message):
    with pytest.raises(ValueError, match=message):
        measure_attention(model, inputs, answer)


def test_prompt_that_ends_with_a_visual_token(model):
    inputs = prompt(1, 2, "image")
    with pytest.raises(ValueError, match="ends with a visual token"):
        measure_attention(model, inputs, ANSWER, layer=2)
    segments = FIRST + SYSTEM + PICTURE * VISUAL
    expected = shares_of(eager_matrices(model, with_answer(inputs)), segments)
    for layer in (None, LAYERS):
        check(measure_attention(model, inputs, ANSWER, layer=layer), expected)


@pytest.mark.parametrize(("layer", "error"), [(0, ValueError), (LAYERS + 1, ValueError), ("2", TypeError)])
def test_bad_layer(model, layer, error):
    before = state(model)
    with pytest.raises(error, match="withdrawal layer must be"):
        measure_attention(model, PROMPTS["image in the middle"][0], layer=layer)
    assert state(model) == before


def test_attention_that_cannot_be_measured(model, monkeypatch):
    inputs = PROMPTS["image in the middle"][0]
    attention = model.get_decoder().layers[1].self_attn
    plain = attention.forward
    with monkeypatch.context() as patch:
        patch.setattr(attention, "forward", lambda *args, **kwargs: plain(*args, **kwargs, softcap=30.0))
        with pytest.raises(ValueError, match="LlamaAttention uses softcap"):
            measure_attention(model, inputs)
    with monkeypatch.context() as patch:
        patch.setattr(attention, "forward", lambda hidden_states, **kwargs: (hidden_states, None))
        with pytest.raises(RuntimeError, match=r"decoder layers \[1\] of this LlavaForConditionalGeneration"):
            measure_attention(model, inputs)


HALVES = (0.0, 0.0, 0.5, 0.5, 0.0)
TEXT_ONLY = (0.25, 0.25, 0.0, 0.5, 0.0)


def test_result_is_immutable_plain_data():
    mass = AttentionMass(SEGMENTS, (HALVES, TEXT_ONLY), ((TEXT_ONLY, HALVES),), visual_tokens=4)
    assert mass.layers == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        mass.visual_tokens = 5
    assert json.loads(json.dumps(mass.to_json())) == {
        "segments": list(SEGMENTS),
        "last_prompt": [list(HALVES), list(TEXT_ONLY)],
        "answer": [[list(TEXT_ONLY), list(HALVES)]],
        "visual_tokens": 4,
        "withdrawal_layer": None,
        "recipe": None,
        "answer_mean": [list(TEXT_ONLY), list(HALVES)],
        "contribution": [],
        "cosine": [],
        "sinks": None,
    }
    assert tuple(Segment) == SEGMENTS


def test_keys_that_are_not_known_are_refused(model):
    with withdraw(model, 2), pytest.raises(RuntimeError, match="attended to 4 positions where 8 were expected"):
        measure_attention(model, prompt(1, 2, "image", 3, 4))
