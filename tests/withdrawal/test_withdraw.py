"""The golden numbers of the authors' own implementation, and the behaviour of the context."""

import copy

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from transformers import LlavaForConditionalGeneration

from tests.golden import GOLDEN, IMAGE, LAYERS, VISUAL, random_llava
from tests.oracles import flash_attention_stand_in, visual_keys_blocked
from vtw_demo.withdrawal import token_pruning
from vtw_demo.withdrawal.withdraw import withdraw

version = Version(transformers.__version__)


def check_against_golden(model, inputs, name):
    out = model.generate(**inputs, max_new_tokens=12, do_sample=False, output_logits=True, return_dict_in_generate=True)
    prompt_length = inputs["input_ids"].shape[1]
    assert out.sequences[0, prompt_length:].tolist() == GOLDEN[f"{name}_tokens"].tolist()
    np.testing.assert_allclose(torch.cat(out.logits).numpy(), GOLDEN[f"{name}_logits"], atol=1e-4, rtol=0)
    return out


def test_golden_without_withdrawal(golden_model, golden_inputs):
    check_against_golden(golden_model, golden_inputs, "full")


@pytest.mark.parametrize("layer", range(1, 8))
def test_golden(golden_model, golden_inputs, layer):
    with withdraw(golden_model, layer=layer):
        out = check_against_golden(golden_model, golden_inputs, f"keep_{layer}")
    lengths = [cache_layer.keys.shape[-2] for cache_layer in out.past_key_values.layers]
    assert lengths == [628 + 11] * layer + [52 + 11] * (8 - layer)


def last_prompt_logits(model, inputs):
    return model(**inputs, logits_to_keep=1).logits[0, -1]


def test_golden_kl_divergence(golden_model, golden_inputs):
    with torch.no_grad():
        full = last_prompt_logits(golden_model, golden_inputs).log_softmax(-1)
        for layer, expected in zip((5, 6, 7), GOLDEN["kl_from5"], strict=True):
            with withdraw(golden_model, layer=layer):
                withdrawn = last_prompt_logits(golden_model, golden_inputs).log_softmax(-1)
            divergence = (withdrawn.exp() * (withdrawn - full)).sum()
            assert divergence.item() == pytest.approx(float(expected), rel=1e-3)


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    return random_llava()


def prompt(*rows: list[int | str]) -> dict[str, torch.Tensor]:
    """A left-padded batch; in a row, "image" stands for a picture."""
    ids = [[token for part in row for token in ([IMAGE] * VISUAL if part == "image" else [part])] for row in rows]
    length = max(map(len, ids))
    pictures = sum(row.count("image") for row in rows)
    inputs = {
        "input_ids": torch.tensor([[0] * (length - len(row)) + row for row in ids]),
        "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in ids]),
    }
    if pictures:
        generator = torch.Generator().manual_seed(1)
        inputs["pixel_values"] = torch.randn(pictures, 3, 8, 8, generator=generator)
    return inputs


PROMPTS = {
    "image in the middle": prompt([1, 2, 3, "image", 4, 5, 6]),
    "image first": prompt(["image", 4, 5, 6]),
    "several images": prompt([1, "image", 2, "image", "image", 3, 4]),
    "ragged batch": prompt(
        [1, "image", 2, 3], [5, 6, 7, 8, 9], ["image", 5, "image", 6, 7, 8], [1, 2, 3, 4, 5, 6, "image", 7]
    ),
    "equal lengths, unequal images": prompt([1, 2, 3, 4, 5, 6, 7, 8], [1, 2, "image", 4, 5]),
    "no image": prompt([1, 2, 3, 4], [5, 6, 7]),
}
GENERATE = {
    "max_new_tokens": 5,
    "do_sample": False,
    "suppress_tokens": [IMAGE],
    "output_logits": True,
    "return_dict_in_generate": True,
}


def text_cache(cache, layer_index, attended):
    """Keys and values of one layer at the attended positions, row by row."""
    layer = cache.layers[layer_index]
    return [
        torch.cat([layer.keys[row][:, positions], layer.values[row][:, positions]], dim=-1)
        for row, positions in enumerate(attended)
    ]


def check_against_oracle(model, inputs, layer, **generate):
    visual = inputs["input_ids"] == IMAGE
    with visual_keys_blocked(model, layer, visual):
        expected = model.generate(**inputs, **GENERATE | generate)
    with withdraw(model, layer=layer):
        out = model.generate(**inputs, **GENERATE | generate)
    assert torch.equal(out.sequences, expected.sequences)
    expected_logits, logits = torch.stack(expected.logits), torch.stack(out.logits)
    assert (logits - expected_logits).abs().max() < 1e-4 * expected_logits.std()
    return out, expected


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layer", range(1, LAYERS + 1))
@pytest.mark.parametrize("name", PROMPTS)
def test_generate_equals_oracle(model, name, layer, attention):
    model.set_attn_implementation(attention)
    inputs = PROMPTS[name]
    out, expected = check_against_oracle(model, inputs, layer)

    decoded = torch.ones(len(inputs["input_ids"]), 4, dtype=torch.bool)
    present = torch.cat([inputs["attention_mask"].bool(), decoded], dim=1)
    text = torch.cat([inputs["attention_mask"].bool() & (inputs["input_ids"] != IMAGE), decoded], dim=1)
    for index in range(LAYERS):
        length = out.past_key_values.layers[index].keys.shape[-2]
        if index < layer or name == "no image":
            assert length == present.shape[1]
            actual = text_cache(out.past_key_values, index, present)
            wanted = text_cache(expected.past_key_values, index, present)
        else:
            # The longest row's text, and nothing else, sets the length; shorter rows are right-aligned.
            counts = text.sum(1)
            assert length == counts.max()
            held = torch.arange(length) >= length - counts[:, None]
            actual = text_cache(out.past_key_values, index, held)
            wanted = text_cache(expected.past_key_values, index, text)
        for row, wanted_row in zip(actual, wanted, strict=True):
            torch.testing.assert_close(row, wanted_row, atol=1e-4, rtol=1e-4)


def test_empty_cache_positions_hold_nothing(model):
    with torch.no_grad(), withdraw(model, layer=2):
        cache = model(**PROMPTS["ragged batch"]).past_key_values
    empty = [4, 2, 3, 0]  # of the seven cache positions that the row with the most text needs
    assert [int((keys == 0).all(-1).all(0).sum()) for keys in cache.layers[2].keys] == empty


@pytest.mark.skipif(version < Version("5.11"), reason="up to transformers 5.10 it fails where a model has no end token")
def test_prompt_lookup_decoding(model):
    """It decodes several tokens at a time and takes some of them back out of the cache."""
    inputs = prompt([1, 2, 3, "image", 1, 2, 3, 1, 2])
    options = {"max_new_tokens": 12, "do_sample": False, "suppress_tokens": [IMAGE]}
    with withdraw(model, layer=2):
        expected = model.generate(**inputs, **options)
        assert torch.equal(model.generate(**inputs, **options, prompt_lookup_num_tokens=3), expected)


@pytest.mark.parametrize("name", ["several images", "ragged batch"])
def test_beams_equal_oracle(model, name):
    visual = PROMPTS[name]["input_ids"] == IMAGE
    options = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False}
    with visual_keys_blocked(model, 2, visual):
        expected = model.generate(**PROMPTS[name], **options)
    with withdraw(model, layer=2):
        assert torch.equal(model.generate(**PROMPTS[name], **options), expected)


@pytest.mark.parametrize("name", PROMPTS)
def test_without_cache(model, name):
    check_against_oracle(model, PROMPTS[name], 2, use_cache=False)


@pytest.mark.skipif(version < Version("5.10"), reason="transformers 5.0 records hidden states before they are restored")
def test_withdrawn_tokens_stay_as_they_were_at_the_withdrawal_layer(model):
    inputs = PROMPTS["ragged batch"]
    visual = inputs["input_ids"] == IMAGE
    attended = inputs["attention_mask"].bool()
    with torch.no_grad():
        full = model.model(**inputs, output_hidden_states=True)
        with withdraw(model, layer=2):
            out = model(**inputs, output_hidden_states=True)
            without = model(**inputs)
        with visual_keys_blocked(model, 2, visual):
            expected = model(**inputs, output_hidden_states=True)
    assert len(out.hidden_states) == LAYERS + 1
    norm = model.model.language_model.norm
    for index, (actual, wanted) in enumerate(zip(out.hidden_states, expected.hidden_states, strict=True)):
        # By float32's rounding, of which masked keys make more than missing ones.
        torch.testing.assert_close(actual[attended & ~visual], wanted[attended & ~visual], atol=5e-5, rtol=1.3e-6)
        at_withdrawal = full.hidden_states[min(index, 2)][visual]
        torch.testing.assert_close(actual[visual], norm(at_withdrawal) if index == LAYERS else at_withdrawal)
    torch.testing.assert_close(without.logits, out.logits)
    torch.testing.assert_close(out.logits, model.lm_head(out.hidden_states[-1]))


def test_prompt_that_ends_in_an_image(model):
    """Its last position is a withdrawn token: the first answer token comes from layer K."""
    inputs = prompt([4, 5, 6, "image"])
    with torch.no_grad():
        at_withdrawal = model(**inputs, output_hidden_states=True).hidden_states[2][0, -1]
        expected = model.lm_head(model.model.language_model.norm(at_withdrawal))
        with withdraw(model, layer=2):
            torch.testing.assert_close(last_prompt_logits(model, inputs), expected)


@pytest.mark.parametrize("name", ["ragged batch", "no image"])
def test_labels_line_up(model, name):
    inputs = PROMPTS[name]
    visual = inputs["input_ids"] == IMAGE
    text = inputs["attention_mask"].bool() & ~visual
    labels = inputs["input_ids"].masked_fill(~text, -100)
    labels[:, 1:][~text[:, :-1]] = -100  # the oracle knows nothing of what visual tokens predict
    with visual_keys_blocked(model, 2, visual):
        expected = model(**inputs, labels=labels)
    with withdraw(model, layer=2):
        out = model(**inputs, labels=labels)
    assert out.logits.shape == expected.logits.shape == (*labels.shape, 90)
    torch.testing.assert_close(out.loss, expected.loss)


def test_right_padding(model):
    left = prompt([1, "image", 2, 3], [5, 6, "image", 7, 8, 9])
    right = {**left, "input_ids": left["input_ids"].clone(), "attention_mask": left["attention_mask"].clone()}
    right["input_ids"][0] = right["input_ids"][0].roll(-2)
    right["attention_mask"][0] = right["attention_mask"][0].roll(-2)
    with torch.no_grad(), withdraw(model, layer=2):
        rows = [model(**prompt([1, "image", 2, 3])).logits[0]]
        left_logits = model(**left).logits
        right_logits = model(**right).logits
        last_two = model(**right, logits_to_keep=2).logits
    torch.testing.assert_close(right_logits[1], left_logits[1])
    torch.testing.assert_close(right_logits[0, : rows[0].shape[0]][-2:].shape, rows[0][-2:].shape)
    torch.testing.assert_close(last_two, right_logits[:, -2:])


def test_several_calls_in_one_context(model):
    longer, shorter, text = PROMPTS["several images"], PROMPTS["image first"], PROMPTS["no image"]
    alone = []
    for inputs in (longer, shorter, longer):
        with withdraw(model, layer=1):
            alone.append(model.generate(**inputs, **GENERATE).sequences)
    plain = model.generate(**text, **GENERATE)
    with withdraw(model, layer=1):
        assert torch.equal(model.generate(**longer, **GENERATE).sequences, alone[0])
        assert torch.equal(model.generate(**shorter, **GENERATE).sequences, alone[1])
        out = model.generate(**text, **GENERATE)
        assert torch.equal(model.generate(**longer, **GENERATE).sequences, alone[2])
    assert torch.equal(torch.stack(out.logits), torch.stack(plain.logits))  # bit for bit


def decode(model, inputs, steps, chunks):
    """Greedy decoding written by hand, the prompt in chunks of these sizes; the logits of each step."""
    mask, logits, cache, start = inputs["attention_mask"], [], None, 0
    pictures = inputs["pixel_values"]
    for ids in inputs["input_ids"].split(chunks, dim=1):
        start += ids.shape[1]
        count = int((ids == IMAGE).sum()) // VISUAL
        some, pictures = pictures[:count], pictures[count:]
        out = model(
            input_ids=ids,
            attention_mask=mask[:, :start],
            position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, start - ids.shape[1] : start],
            pixel_values=some if count else None,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = out.past_key_values
    for _ in range(steps):
        logits.append(out.logits[:, -1])
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        out = model(
            input_ids=out.logits[:, -1:].argmax(-1),
            attention_mask=mask,
            position_ids=mask.sum(1, keepdim=True) - 1,
            past_key_values=cache,
        )
    return torch.stack(logits), cache


@pytest.mark.parametrize("chunks", [[18], [6, 12], [12, 6], [6, 6, 6], [1, 4, 13]], ids=str)
def test_prefill_in_chunks_and_decoding_by_hand(model, chunks):
    # In turn: image in each chunk, none in the last, and a chunk that is nothing but an image.
    inputs = prompt([1, "image", 2, 3, "image", 4, 5, 6, 7, 8, 9, 10])
    with torch.no_grad():
        with visual_keys_blocked(model, 2, inputs["input_ids"] == IMAGE):
            expected, _ = decode(model, inputs, 4, [18])
        with withdraw(model, layer=2):
            logits, cache = decode(model, inputs, 4, chunks)
    torch.testing.assert_close(logits, expected)
    empty = 1 if 4 in chunks else 0  # layers can't run on no token at all
    assert [layer.keys.shape[-2] for layer in cache.layers] == [22, 22, 14 + empty, 14 + empty]


def test_conversation_goes_on_with_its_cache(model):
    first = prompt([1, 2, "image", 3, 4])
    second = prompt([5, "image", 6, 7])
    both = {name: torch.cat([first[name], second[name]], dim=-1) for name in ("input_ids", "attention_mask")}
    both["pixel_values"] = torch.cat([first["pixel_values"], second["pixel_values"]])
    with torch.no_grad(), withdraw(model, layer=2):
        expected = last_prompt_logits(model, both)
        cache = model(**first).past_key_values
    with torch.no_grad(), withdraw(model, layer=2):  # another context of the same layer will do
        turn = {**second, "attention_mask": both["attention_mask"]}
        torch.testing.assert_close(last_prompt_logits(model, {**turn, "past_key_values": cache}), expected)
    with withdraw(model, layer=3), pytest.raises(RuntimeError, match=r"withdrawal layer 2, .* with 3"):
        model(**turn, past_key_values=cache)


def next_logits(model, tokens, mask, cache):
    """The logits after one more token a row."""
    mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    positions = mask.sum(1, keepdim=True) - 1
    out = model(input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache)
    return out.logits[:, -1]


def test_placeholder_in_an_answer_is_text(model):
    inputs = PROMPTS["image first"]
    placeholder = torch.tensor([[IMAGE]])
    with torch.no_grad():
        with visual_keys_blocked(model, 2, inputs["input_ids"] == IMAGE):
            expected = next_logits(model, placeholder, inputs["attention_mask"], model(**inputs).past_key_values)
        with withdraw(model, layer=2):
            logits = next_logits(model, placeholder, inputs["attention_mask"], model(**inputs).past_key_values)
    torch.testing.assert_close(logits, expected)


def test_cache_is_copied_and_rearranged(model):
    inputs = PROMPTS["ragged batch"]
    mask, rows = inputs["attention_mask"], torch.tensor([2, 0, 0])
    tokens = torch.tensor([[11], [12], [13], [14]])
    with torch.no_grad(), withdraw(model, layer=2):
        cache = model(**inputs).past_key_values
        copies = [copy.deepcopy(cache) for _ in range(3)]
        expected = next_logits(model, tokens, mask, cache)
        copies[0].batch_select_indices(rows)
        torch.testing.assert_close(next_logits(model, tokens[rows], mask[rows], copies[0]), expected[rows])
        copies[1].reorder_cache(torch.tensor([3, 2, 1, 0]))
        flipped = next_logits(model, tokens.flip(0), mask.flip(0), copies[1])
        torch.testing.assert_close(flipped, expected.flip(0))
        copies[2].batch_repeat_interleave(2)
        twice = [tensor.repeat_interleave(2, dim=0) for tensor in (tokens, mask)]
        repeated = next_logits(model, *twice, copies[2])
        torch.testing.assert_close(repeated, expected.repeat_interleave(2, dim=0))


@pytest.mark.skipif(version < Version("5.18"), reason="up to transformers 5.17 a cache that is reset keeps its length")
def test_cache_is_reset(model):
    with torch.no_grad(), withdraw(model, layer=2):
        cache = model(**PROMPTS["ragged batch"]).past_key_values
        cache.reset()
        assert [cache.get_seq_length(index) for index in range(LAYERS)] == [0] * LAYERS
        again = PROMPTS["several images"]
        expected = last_prompt_logits(model, again)
        torch.testing.assert_close(last_prompt_logits(model, {**again, "past_key_values": cache}), expected)


def state_of(model):
    """Everything that a context could leave behind, in all modules."""
    return {
        name: {key: dict(value) if isinstance(value, dict) else value for key, value in vars(module).items()}
        for name, module in model.named_modules()
    }


def test_leaving_restores_the_model(model):
    inputs = PROMPTS["ragged batch"]
    expected = model(**inputs, output_hidden_states=True).logits  # lets transformers place its own hooks
    before = state_of(model)
    with withdraw(model, layer=1):
        model(**inputs)
        assert state_of(model) != before
    assert state_of(model) == before
    assert torch.equal(model(**inputs).logits, expected)

    def interrupt(module, args, output):
        raise KeyboardInterrupt

    handle = model.model.language_model.layers[2].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt), withdraw(model, layer=1):
        model(**inputs)
    handle.remove()
    assert state_of(model) == before
    assert torch.equal(model(**inputs).logits, expected)


def test_interrupted_forward_leaves_the_context_usable(model):
    inputs = PROMPTS["several images"]
    with withdraw(model, layer=2):
        expected = model(**inputs).logits
        with pytest.raises(ValueError, match="Image features and image tokens do not match"):
            model(**{**inputs, "pixel_values": inputs["pixel_values"][:1]})
        assert torch.equal(model(**inputs).logits, expected)
    model(**inputs)


def test_one_context_at_a_time(model):
    with withdraw(model, layer=2):
        with pytest.raises(RuntimeError, match="LlavaForConditionalGeneration already"), withdraw(model, 3):
            pass
        with pytest.raises(RuntimeError, match="LlavaModel already"), withdraw(model.model, 2):
            pass
        assert len(model._forward_pre_hooks) == 1  # the first context is still whole
    with withdraw(model, layer=3):
        pass


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        (0, ValueError, r"from 1 to 4.* this is 0.*leave the picture out"),
        (-1, ValueError, r"from 1 to 4.* this is -1"),
        (5, ValueError, r"from 1 to 4.* this is 5"),
        (2.0, TypeError, r"must be an integer; this is 2\.0"),
        (True, TypeError, r"must be an integer; this is True"),
        (None, TypeError, r"must be an integer; this is None"),
    ],
)
def test_withdrawal_layer_is_checked(model, layer, error, message):
    with pytest.raises(error, match=message), withdraw(model, layer=layer):
        pass


def test_forward_passes_that_cannot_be_understood(model):
    inputs = PROMPTS["image first"]
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    with withdraw(model, layer=2), pytest.raises(ValueError, match="Hand input_ids instead of inputs_embeds"):
        model(inputs_embeds=embeddings, pixel_values=inputs["pixel_values"])


def test_generation_does_not_restore_what_it_does_not_read(model, monkeypatch):
    restored = []
    real = token_pruning.scatter_hidden_states
    monkeypatch.setattr(
        token_pruning, "scatter_hidden_states", lambda *args: restored.append(len(restored)) or real(*args)
    )
    with withdraw(model, layer=2):
        model.generate(**PROMPTS["several images"], **GENERATE)
        assert restored == []
        model(**PROMPTS["several images"])
    assert restored == [0]


def test_masks_are_built_once_and_only_where_needed(model):
    model.set_attn_implementation("sdpa")
    masks = []
    hooks = [
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
        )
        for layer in model.model.language_model.layers
    ]
    try:
        with withdraw(model, layer=2):
            model.generate(**PROMPTS["several images"], **GENERATE)
            assert masks == [None] * (LAYERS * 5)  # sdpa's fast path, in prefill and decode
            masks.clear()
            model(**PROMPTS["ragged batch"])
    finally:
        for hook in hooks:
            hook.remove()
    assert masks[0] is masks[1]
    assert masks[2] is masks[3]
    assert masks[2].shape[-2:] == (7, 7)


@pytest.mark.parametrize("name", PROMPTS)
def test_flash_attention(model, name):
    inputs = PROMPTS[name]
    with visual_keys_blocked(model, 2, inputs["input_ids"] == IMAGE):
        expected = model.generate(**inputs, **GENERATE)
    with flash_attention_stand_in(model), withdraw(model, layer=2):
        out = model.generate(**inputs, **GENERATE)
    assert torch.equal(out.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(out.logits), torch.stack(expected.logits))
