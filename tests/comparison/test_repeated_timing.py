import dataclasses
import json
import threading
from contextlib import contextmanager

import pytest

from vtw_demo.comparison.compare import compare
from vtw_demo.comparison.repeated_timing import RepeatedTiming, StageTimes, repeat_timing
from vtw_demo.comparison.timing import Spread
from vtw_demo.withdrawal.architectures import find_decoder

QUESTION = "What do you see?"
LAYER = 5
FULL = StageTimes((5.0, 6.0, 4.0), (40.0, 80.0, 50.0), (4.0, 4.0, 5.0), (60.0, 100.0, 80.0))
WITHDRAWN = StageTimes((5.0, 3.0, 4.0), (20.0, 60.0, 30.0), (4.0, 5.0, 5.0), (40.0, 80.0, 60.0))
TIMING = RepeatedTiming(LAYER, FULL, WITHDRAWN)


@pytest.fixture(scope="module")
def comparison(vlm, picture):
    *_, comparison = compare(vlm, picture, QUESTION, LAYER, max_new_tokens=4)
    return comparison


@contextmanager
def forward_passes(vlm):
    """The number of tokens that the last decoder layer runs on, pass by pass."""
    tokens = []
    projection = find_decoder(vlm.model).layers[-1].self_attn.q_proj
    hook = projection.register_forward_pre_hook(lambda module, args: tokens.append(args[0].shape[-2]))
    try:
        yield tokens
    finally:
        hook.remove()


def hooks(vlm):
    return [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in vlm.model.modules()]


def test_both_runs_are_made_in_every_round_and_take_turns_in_going_first(vlm, picture, comparison):
    before = hooks(vlm)
    with forward_passes(vlm) as tokens:
        timings = list(repeat_timing(vlm, vlm.prompt(picture, QUESTION), LAYER, 4, rounds=3))
    full = [comparison.visual_tokens + comparison.text_tokens] + [1] * (len(comparison.full.tokens) - 1)
    withdrawn = [comparison.text_tokens] + [1] * (len(comparison.withdrawn.tokens) - 1)
    assert tokens == full + withdrawn + withdrawn + full + full + withdrawn
    assert [timing.rounds for timing in timings] == [1, 2, 3]
    for number, timing in enumerate(timings, start=1):
        assert timing.layer == LAYER
        for run in ("full", "withdrawn"):
            for stage in ("encode_ms", "prefill_ms", "decode_ms_per_token", "total_ms"):
                assert timing.times(run, stage) == timings[-1].times(run, stage)[:number]
                assert min(timing.times(run, stage)) > 0
            assert len(set(timing.times(run, "total_ms"))) == number  # each round was measured for itself
    assert hooks(vlm) == before


def test_rounds_go_on_after_those_that_were_made_before(vlm, picture, comparison):
    prompt = vlm.prompt(picture, QUESTION)
    (first,) = repeat_timing(vlm, prompt, LAYER, 4, rounds=1)
    with forward_passes(vlm) as tokens:
        later = list(repeat_timing(vlm, prompt, LAYER, 4, rounds=2, before=first))
    full = [comparison.visual_tokens + comparison.text_tokens] + [1] * (len(comparison.full.tokens) - 1)
    withdrawn = [comparison.text_tokens] + [1] * (len(comparison.withdrawn.tokens) - 1)
    assert tokens == withdrawn + full + full + withdrawn
    assert [timing.rounds for timing in later] == [2, 3]
    for run in ("full", "withdrawn"):
        assert later[-1].times(run, "total_ms")[0] == first.times(run, "total_ms")[0]


def test_a_run_beside_takes_its_turn_in_every_round(vlm, picture):
    prompt, recipe = vlm.prompt(picture, QUESTION), "0:uniform_grid:0.5"
    (first,) = repeat_timing(vlm, prompt, LAYER, 2, rounds=1, recipe=recipe)
    with forward_passes(vlm) as tokens:
        (timing,) = repeat_timing(vlm, prompt, LAYER, 2, rounds=1, before=first, recipe=recipe)
    halved = prompt.length - prompt.visual_tokens // 2
    assert [count for count in tokens if count > 1] == [halved, prompt.length - prompt.visual_tokens, prompt.length]
    assert (timing.recipe, timing.rounds) == (recipe, 2)
    assert timing.times("beside", "total_ms")[0] == first.times("beside", "total_ms")[0]
    assert timing.ratio("prefill_ms", "beside").median > 0
    written = timing.to_json()
    assert written["beside_spread"]["prefill_ms"]["median"] == timing.spread("beside", "prefill_ms").median
    assert written["beside_ratio"]["prefill_ms"]["median"] == timing.ratio("prefill_ms", "beside").median


def test_stages_add_up_in_every_round(vlm, picture, comparison):
    *_, timing = repeat_timing(vlm, vlm.prompt(picture, QUESTION), LAYER, 4, rounds=2)
    for times, run in ((timing.full, comparison.full), (timing.withdrawn, comparison.withdrawn)):
        for encode, prefill, decode, total in zip(*dataclasses.astuple(times), strict=True):
            assert encode + prefill + decode * (len(run.tokens) - 1) == pytest.approx(total)


def test_answers_of_one_token_have_no_decode(vlm, picture):
    (timing,) = repeat_timing(vlm, vlm.prompt(picture, QUESTION), LAYER, 1, rounds=1)
    assert timing.full.decode_ms_per_token == timing.withdrawn.decode_ms_per_token == ()
    assert timing.spread("full", "decode_ms_per_token") is None
    assert timing.ratio("decode_ms_per_token") is None
    assert timing.ratio("prefill_ms").median > 0


@pytest.mark.parametrize("at", [1, 3, 5, 10])
def test_stop_ends_the_run_in_hand_within_a_token(vlm, picture, comparison, at):
    before, stop = hooks(vlm), threading.Event()
    with forward_passes(vlm) as tokens:
        model_hook = vlm.model.register_forward_hook(lambda *_: stop.set() if len(tokens) == at else None)
        try:
            timings = list(repeat_timing(vlm, vlm.prompt(picture, QUESTION), LAYER, 4, rounds=50, stop=stop))
        finally:
            model_hook.remove()
    assert len(tokens) == at
    passes_of_a_round = len(comparison.full.tokens) + len(comparison.withdrawn.tokens)
    assert len(timings) == (at - 1) // passes_of_a_round
    assert hooks(vlm) == before


def test_a_closed_iterator_frees_the_model(vlm, picture):
    before = hooks(vlm)
    timings = repeat_timing(vlm, vlm.prompt(picture, QUESTION), LAYER, 2, rounds=50)
    next(timings)
    timings.close()
    assert hooks(vlm) == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("withdrawal")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rounds": 0}, "from 1 to 100; this is 0"),
        ({"rounds": 101}, "from 1 to 100; this is 101"),
        ({"rounds": True}, "this is True"),
        ({"rounds": 2.5}, "this is 2.5"),
        ({"layer": 0}, "this is 0"),
        ({"layer": 14}, "from 1 to 13.*this is 14"),
    ],
)
def test_bad_input_is_named_before_anything_runs(vlm, picture, change, said):
    given = {"layer": LAYER, "max_new_tokens": 4, "rounds": 1, **change}
    with pytest.raises(ValueError, match=said):
        repeat_timing(vlm, vlm.prompt(picture, QUESTION), **given)


def test_ratios_are_taken_within_rounds():
    assert TIMING.rounds == 3
    ratio = TIMING.ratio("prefill_ms")  # 0.5, 0.75 and 0.6; the ratio of the medians would be 0.6 as well
    assert (ratio.lowest, ratio.median, ratio.highest) == pytest.approx((0.5, 0.6, 0.75))
    encode = TIMING.ratio("encode_ms")  # 1, 0.5 and 1; the ratio of the medians would be 0.8
    assert (encode.lowest, encode.median, encode.highest) == (0.5, 1, 1)
    assert TIMING.spread("withdrawn", "prefill_ms") == Spread(20, 25, 30, 45, 60)
    none = dataclasses.replace(FULL, encode_ms=(0.0, 6.0, 4.0))
    assert RepeatedTiming(LAYER, none, WITHDRAWN).ratio("encode_ms") is None


def test_plain_data():
    data = json.loads(json.dumps(TIMING.to_json()))
    assert (data["layer"], data["rounds"]) == (LAYER, 3)
    assert data["full"]["prefill_ms"] == [40, 80, 50]
    assert data["withdrawn_spread"]["prefill_ms"]["median"] == 30
    assert data["full_spread"]["total_ms"]["highest"] == 100
    assert data["ratio"]["prefill_ms"]["lowest"] == 0.5
    one_token = dataclasses.replace(FULL, decode_ms_per_token=())
    data = json.loads(json.dumps(RepeatedTiming(LAYER, one_token, one_token).to_json()))
    assert data["full_spread"]["decode_ms_per_token"] is data["ratio"]["decode_ms_per_token"] is None
