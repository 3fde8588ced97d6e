import pytest
from PIL import Image

from vtw_demo.page.examples import Restored, load_examples, restore, scene_example
from vtw_demo.server.query import LONGEST_QUESTION

EXAMPLES = load_examples()


def test_every_example_can_be_shown_and_asked():
    examples = load_examples()
    assert len(examples) >= 6
    assert len({example.picture for example in examples}) == len(examples)
    for example in examples:
        with Image.open(example.picture) as picture:
            assert min(picture.size) >= 224
        assert example.question in example.suggestions
        assert len(set(example.suggestions)) == len(example.suggestions) >= 3


def test_a_random_scene_comes_with_questions_that_fit_it():
    first, again, other = scene_example(1), scene_example(1), scene_example(2)
    assert first.picture.tobytes() == again.picture.tobytes() != other.picture.tobytes()
    assert first.suggestions == again.suggestions
    assert len(first.suggestions) >= 5


def read(**parameters):
    return restore(parameters, EXAMPLES, "embedded", 13, ("low", "usual"))


def test_an_example_comes_back_with_its_question_and_layer():
    restored = read(example=EXAMPLES[2].picture.stem, question="What is it?", layer="7", model="embedded")
    assert restored.example is EXAMPLES[2]
    assert restored.example.origin == {"example": EXAMPLES[2].picture.stem}
    assert (restored.question, restored.layer) == ("What is it?", 7)
    assert not restored.problems


def test_a_scene_is_drawn_again():
    restored = read(scene="1234")
    scene = scene_example(1234)
    assert restored.example.picture.tobytes() == scene.picture.tobytes()
    assert restored.example.suggestions == scene.suggestions
    assert restored.question == scene.suggestions[0]
    assert restored.example.origin == {"scene": "1234"}


def test_nothing_asked_for_restores_nothing():
    assert read() == Restored(None, None, None, ())


def test_a_picture_detail_comes_back_where_the_model_has_it():
    assert read(detail="low").detail == "low"
    restored = read(detail="high")
    assert restored.detail is None
    assert restored.problems == ("The link's picture detail is 'high'; this model has low, usual.",)


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"layer": "14"}, "from 1 to 13; this is '14'"),
        ({"layer": "0"}, "from 1 to 13"),
        ({"layer": "7.5"}, "from 1 to 13"),
        ({"layer": "9" * 5000}, "from 1 to 13"),
        ({"example": "../../etc/passwd"}, "no example"),
        ({"scene": "-1"}, "up to 9 digits"),
        ({"scene": "1" * 10}, "up to 9 digits"),
        ({"model": "llava-hf/llava-1.5-7b-hf"}, "this page runs 'embedded'"),
    ],
)
def test_what_cannot_be_restored_is_said(parameters, problem):
    restored = read(**parameters)
    assert restored.example is None
    assert restored.layer is None
    (sentence,) = restored.problems
    assert problem in sentence


def test_a_long_question_is_cut_and_says_so():
    restored = read(question="x" * 2 * LONGEST_QUESTION)
    assert len(restored.question) == LONGEST_QUESTION
    assert "is cut: it may have up to" in restored.problems[0]


def test_a_picture_of_ones_own_is_not_restored():
    assert read(picture="own", question="What?").is_of_own_picture
    assert not read(question="What?").is_of_own_picture
