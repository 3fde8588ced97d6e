import dataclasses
import json

import pytest
import torch

from tests import saved_models
from tests.oracles import visual_keys_blocked
from vtw_demo import compare, load, withdraw
from vtw_demo.comparison.compare import Comparison, RunFinished
from vtw_demo.comparison.follow_up import FollowUp, Turn
from vtw_demo.comparison.timed_generate import held_cache
from vtw_demo.errors import UserError
from vtw_demo.measurements.flops import continued_flops, prefill_flops
from vtw_demo.withdrawal.segments import visual_token_mask

FIRST, SECOND = "What is the blue thing?", "How many things are there?"


def asked_on(vlm, picture, layer, tokens=4):
    *_, first = compare(vlm, picture, FIRST, layer, max_new_tokens=tokens)
    return first, list(compare(vlm, picture, SECOND, layer, max_new_tokens=tokens, history=first))


def test_each_run_goes_on_from_its_own_answer(vlm, picture):
    first, events = asked_on(vlm, picture, 4)
    found = events[-1]
    assert isinstance(first, Comparison)
    assert isinstance(found, FollowUp)
    assert not first.same_answer
    assert not found.same_history
    assert found.history == (Turn(FIRST, first.full.tokens, first.withdrawn.tokens),)
    assert [event.run for event in events if isinstance(event, RunFinished)] == ["full", "withdrawn", "fresh"]
    prompt = vlm.prompt(picture, FIRST)
    for run, answer, layer in (("full", first.full, 13), ("withdrawn", first.withdrawn, 4)):
        conversation = vlm.continued(prompt, answer.tokens, SECOND)
        length = conversation.length
        with withdraw(vlm.model, layer):  # the whole conversation in one pass
            read = vlm.generate(**conversation.inputs, max_new_tokens=4)[0, length:].tolist()
        assert list(getattr(found, run).tokens) == read
    read = vlm.generate(**conversation.inputs, max_new_tokens=4)[0, length:].tolist()
    assert list(found.fresh.tokens) == read
    assert found.tokens == length
    assert found.full.encode_ms is None
    assert found.withdrawn.encode_ms is None
    assert found.withdrawn.kv_cache_bytes < found.fresh.kv_cache_bytes
    assert found.withdrawn.prefill_flops < 0.1 * found.fresh.prefill_flops
    assert json.loads(json.dumps(found.to_json()))["history"][0]["question"] == FIRST
    third = list(compare(vlm, picture, FIRST, 4, max_new_tokens=2, history=[*found.history, found.turn]))[-1]
    assert len(third.history) == 2
    assert third.tokens > found.tokens


def test_the_conversation_is_written_as_the_template_does(vlm, picture):
    prompt = vlm.prompt(picture, FIRST)
    tokenizer = vlm.processor.tokenizer
    said = tokenizer.encode("circle")
    for answer in (said, [*said, tokenizer.eos_token_id]):
        conversation = vlm.continued(prompt, answer, "Is it <image> red?")
        written = tokenizer.decode(conversation.inputs["input_ids"][0, prompt.length :])
        assert written.startswith("circle<|im_end|><|im_start|>user\nIs it <")
        assert written.endswith("red?<|im_end|>")
        assert conversation.visual_tokens == prompt.visual_tokens
        assert conversation.held == prompt.length + len(answer) - 1


def last_logits_of_both(vlm, picture, layer):
    """Those that go on with the kept cache, and those of the masking oracle in one pass over the conversation."""
    prompt = vlm.prompt(picture, FIRST)
    answer = [5, 6, 7]
    conversation = vlm.continued(prompt, answer, SECOND)
    going_on = conversation.further_inputs
    inputs = dict(conversation.inputs)
    visual = visual_token_mask(vlm.model.config, inputs["input_ids"])
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "return_dict_in_generate": True, "output_logits": True}
    with torch.inference_mode():
        with withdraw(vlm.model, layer):
            going_on["past_key_values"] = held_cache(vlm, conversation)
            kept = vlm.generate(**going_on, **options)
        if layer == vlm.layers:
            expected = vlm.generate(**inputs, **options)
        else:
            with visual_keys_blocked(vlm.model, layer, visual):
                expected = vlm.generate(**inputs, **options)
    assert kept.sequences.tolist() == expected.sequences.tolist()
    return torch.stack(kept.logits), torch.stack(expected.logits)


@pytest.mark.parametrize("layer", [3, 8, 13])
def test_a_kept_cache_says_what_the_masked_conversation_says(vlm, picture, layer):
    kept, expected = last_logits_of_both(vlm, picture, layer)
    assert (kept - expected).abs().max() < 1e-4 * expected.std()


@pytest.mark.parametrize(
    "family",
    [
        "qwen2_vl",
        *(pytest.param(name, marks=pytest.mark.nightly) for name in ("llava", "llava_next", "smolvlm", "internvl")),
    ],
)
@pytest.mark.parametrize("layer", [1, "all"])
def test_a_kept_cache_in_other_families(family, layer, tmp_path, picture):
    saved_models.save(family, tmp_path)
    small = load(tmp_path, device="cpu")
    kept, expected = last_logits_of_both(small, picture, small.layers if layer == "all" else layer)
    assert (kept - expected).abs().max() < 1e-4 * expected.std()


def test_flops_of_going_on_are_those_that_reading_all_has_beyond(vlm):
    """Torch's counter, in a model without withdrawal: all products but those among the tokens held."""
    from torch.utils.flop_counter import FlopCounterMode

    ids, config = torch.arange(50, 80)[None], vlm.model.config
    vlm.model.set_attn_implementation("eager")  # the counter sees no fused attention on a CPU
    try:
        with torch.inference_mode():
            cache = vlm.model(input_ids=ids[:, :20], use_cache=True).past_key_values
            with FlopCounterMode(display=False) as counter:
                vlm.model(input_ids=ids[:, 20:], past_key_values=cache, logits_to_keep=1)
    finally:
        vlm.model.set_attn_implementation("sdpa")
    assert counter.get_total_flops() == continued_flops(config, 30, 0, vlm.layers, 20)
    assert continued_flops(config, 230, 196, 8, 220) < continued_flops(config, 230, 196, 13, 220)
    assert continued_flops(config, 230, 196, 13, 220) < 0.1 * prefill_flops(config, 230, 196, 13)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer": 5}, "answered at K = 4, and its KV cache can't go on at K = 5"),
        ({"history": []}, "a list of at least one Turn"),
        ({"history": ["What?"]}, "a list of at least one Turn"),
        ({"question": " "}, "The question is empty"),
        ({"beside": "fastv"}, "give neither `full` nor `beside`"),
        ({"max_new_tokens": 0}, "must be from 1 to 1024"),
    ],
)
def test_what_cant_go_on_is_told_before_anything_runs(vlm, picture, make_comparison, changes, said):
    history = dataclasses.replace(make_comparison(), layer=4)
    given = {"question": SECOND, "layer": 4, "history": history} | changes
    with pytest.raises(UserError, match=said):
        compare(vlm, picture, **given)


def test_a_template_without_a_second_turn_is_told(vlm, picture):
    class Single:
        tokenizer = vlm.processor.tokenizer

        def apply_chat_template(self, messages, **options):
            return vlm.processor.apply_chat_template(messages[-1:], **options)

    single = dataclasses.replace(vlm, processor=Single())
    with pytest.raises(UserError, match="doesn't go on after an answer"):
        single.continued(vlm.prompt(picture, FIRST), [5], SECOND)
