"""Pairs worked out by hand from the rules of the VQA evaluation."""

import pytest

from vtw_demo.evaluation.metrics import description_match, exact_match, normalise


@pytest.mark.parametrize(
    ("written", "compared"),
    [
        ("Red", "red"),
        ("  The red\n square. ", "red square"),
        ("two", "2"),
        ("None", "0"),
        ("Yes!", "yes"),
        ("dont", "don't"),
        ("It’s", "it's"),
        ("its", "its"),
        ("3,000", "3000"),
        ("3.5", "3.5"),
        ("U.S.", "us"),
        ("left-hand", "left hand"),
        ("red, blue", "red blue"),
        ("10:30", "10:30"),
        ("50%", "50%"),
        ("A", "a"),
        ("?!", ""),
        ("", ""),
    ],
)
def test_as_vqa_compares(written, compared):
    assert normalise(written) == compared


def test_exact_match_takes_any_reference():
    assert exact_match("The cat.", ("a dog", "Cat")) == 1
    assert exact_match("cats", ("a dog", "Cat")) == 0
    assert exact_match("", ("yes",)) == 0
    assert exact_match("", ("?",)) == 0


DESCRIBED = "There is a small red star at the top left, a large blue circle with a 4 on it in the center."


@pytest.mark.parametrize(
    ("said", "score"),
    [
        (DESCRIBED, 1),
        # Another order, other sizes and no character: every object, colour and place is right.
        ("There is a small blue circle in the center and a large red star at the top left.", 1),
        ("There is a small red star at the top and a large blue circle in the center.", 0),
        ("There is a small pink star at the top left and a large blue circle in the center.", 0),
        ("There is a small red heart at the top left and a large blue circle in the center.", 0),
        ("There is a small red star at the top left.", 0),
        (DESCRIBED + " There is a small red star at the top left.", 0),
        ("", 0),
    ],
)
def test_descriptions(said, score):
    assert description_match(said, (DESCRIBED,)) == score
