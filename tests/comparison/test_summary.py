import pytest

from vtw_demo.comparison.summary import verdict


def test_the_same_answer_and_what_it_saved(make_comparison):
    assert verdict(make_comparison()) == "Same answer. Prefill 1.6 times as fast, 44 % fewer FLOPs, cache 41 % smaller."


def test_a_slower_run_is_called_slower(make_comparison, make_run):
    sentence = verdict(make_comparison(withdrawn=make_run(prefill_ms=80.0)))
    assert "slower" in sentence
    assert "2.0 times as long" in sentence


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
