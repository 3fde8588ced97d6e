import pytest

from vtw_demo.comparison.analysis import verdict
from vtw_demo.comparison.repeated_timing import RepeatedTiming, StageTimes


def test_the_same_answer_and_what_it_saved(make_comparison):
    assert verdict(make_comparison()) == (
        "Same answer, right or wrong. 44 % fewer FLOPs (prompt only), 41 % less cache (with answer). "
        "In one run, prefill 25.0 ms instead of 40.0 ms."
    )


def rounds(*prefills):
    full, withdrawn = (StageTimes((), tuple(times), (), tuple(times)) for times in zip(*prefills, strict=True))
    return RepeatedTiming(6, full, withdrawn)


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        (
            ((40, 20), (80, 60), (50, 30)),
            "Median of 3 rounds (lowest to highest): prefill 0.60 (0.50 to 0.75) times as long.",
        ),
        (((40, 80), (40, 120)), "Median of 2 rounds (lowest to highest): prefill 2.50 (2.00 to 3.00) times as long."),
        (((40, 20),), "In one run, prefill 25.0 ms instead of 40.0 ms."),
    ],
)
def test_a_time_is_of_one_run_until_there_are_more(make_comparison, measured, said):
    assert verdict(make_comparison(), rounds(*measured)).endswith(said)


def test_a_cache_of_answers_of_different_lengths_says_so(make_comparison, make_run):
    sentence = verdict(make_comparison(make_run("a b c", (1, 2, 3)), make_run("a", (1,), kv_cache_bytes=118)))
    assert "41 % less cache (with answers of 3 and 1 token)" in sentence


def test_words_and_tokens_are_counted_from_one_everywhere(make_comparison, make_run):
    comparison = make_comparison(make_run("a red star", (1, 2, 3, 4)), make_run("a blue star", (1, 2, 9, 4)))
    written = comparison.to_json()
    assert (written["first_differing_word"], written["first_difference"]) == (2, 3)
    assert "word 2" in verdict(comparison)
    same = make_comparison().to_json()
    assert (same["first_differing_word"], same["first_difference"]) == (None, None)


def test_answers_that_differ_in_spaces_alone_say_so(make_comparison, make_run):
    comparison = make_comparison(make_run("a red", (1, 2)), make_run("a  red", (1, 3)))
    assert verdict(comparison).startswith("Same words, but other spaces from token 2 on.")


@pytest.mark.parametrize(
    ("full", "withdrawn", "expected"),
    [
        ("a red star", "a blue star", "word 2 is “red”, and “blue” when withdrawn"),
        ("a red star", "a red", "withdrawn, the answer ends before word 3, “star”"),
        ("a red", "a red star", "withdrawn, the answer goes on with word 3, “star”"),
    ],
)
def test_different_answers_say_where(make_comparison, make_run, full, withdrawn, expected):
    comparison = make_comparison(make_run(full, (1, 2, 3)), make_run(withdrawn, (1, 4, 3)))
    assert verdict(comparison).startswith(f"Different answers: {expected}")


def test_the_same_words_of_other_tokens(make_comparison, make_run):
    comparison = make_comparison(make_run("red", (1, 2)), make_run("red", (1, 3)))
    assert verdict(comparison).startswith("Same words, but other tokens from token 2 on.")


def test_nothing_withdrawn_saves_nothing(make_comparison, make_run):
    assert "nothing is withdrawn" in verdict(make_comparison(withdrawn=make_run(), layer=12))


def test_a_run_beside_says_by_what_and_at_what_cost(make_comparison, make_run):
    beside = make_run("blue", (8, 2), prefill_ms=30.0, prefill_flops=555)
    sentence = verdict(make_comparison(beside=beside, recipe="2:fastv:0.25"))
    assert sentence.endswith(
        "Beside it, FastV, 25 % of the visual tokens left from layer 2 on: another answer than in full, "
        "44 % fewer FLOPs; in one run, prefill 30.0 ms."
    )
    same = verdict(make_comparison(beside=make_run(), recipe="2:fastv:0.25", layer=12))
    assert "nothing is withdrawn" in same
    assert "from layer 2 on: the same answer as in full, 0 % fewer FLOPs" in same
