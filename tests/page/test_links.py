import pytest

from vtw_demo.page.examples import load_examples, random_example
from vtw_demo.page.links import restore

EXAMPLES = load_examples()


def read(**parameters):
    return restore(parameters, EXAMPLES, "embedded", 12, longest_question=100)


def test_an_example_comes_back_with_its_question_and_layer():
    restored = read(example=EXAMPLES[2].picture.stem, question="What is it?", layer="7", model="embedded")
    assert restored.picture == str(EXAMPLES[2].picture)
    assert restored.origin == {"example": EXAMPLES[2].picture.stem}
    assert (restored.question, restored.layer) == ("What is it?", 7)
    assert restored.suggestions == EXAMPLES[2].suggestions
    assert not restored.problems


def test_a_scene_is_drawn_again():
    restored = read(scene="1234")
    picture, questions = random_example(1234)
    assert restored.picture.tobytes() == picture.tobytes()
    assert restored.question == questions[0]
    assert restored.origin == {"scene": "1234"}


def test_nothing_asked_for_restores_nothing():
    assert read() == type(read())()


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"layer": "13"}, "from 1 to 12; this is '13'"),
        ({"layer": "0"}, "from 1 to 12"),
        ({"layer": "7.5"}, "from 1 to 12"),
        ({"layer": "9" * 5000}, "from 1 to 12"),
        ({"example": "../../etc/passwd"}, "no example"),
        ({"scene": "-1"}, "up to 9 digits"),
        ({"scene": "1" * 10}, "up to 9 digits"),
        ({"model": "llava-hf/llava-1.5-7b-hf"}, "this page runs 'embedded'"),
    ],
)
def test_what_cannot_be_restored_is_said(parameters, problem):
    restored = read(**parameters)
    assert restored.picture is None
    assert restored.layer is None
    (sentence,) = restored.problems
    assert problem in sentence


def test_a_long_question_is_cut():
    assert len(read(question="x" * 1000).question) == 100
