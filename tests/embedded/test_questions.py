"""Answers are checked against the scene by rules written anew here, not by those that made them."""

import random
import re

import pytest

from vtw_demo.embedded.questions import KINDS, SHORT_ANSWER_KINDS, ask, ask_several
from vtw_demo.embedded.scenes import COLOURS, SHAPES, random_scene


def asked(kind: str, count: int = 300):
    for seed in range(count):
        generator = random.Random(f"{kind} {seed}")
        scene = random_scene(generator, generator.randint(1, 6))
        question = ask(scene, kind, generator)
        if question is not None:
            yield scene, question


def named(scene, text):
    """The objects that fit the colour and the shape in `text`."""
    words = re.findall(r"[a-z]+", text.lower())
    colours = [c for c in COLOURS if c in words]
    shapes = [s for s in SHAPES if s in words or f"{s}s" in words]
    return [o for o in scene.objects if o.colour in (colours or [o.colour]) and o.shape in (shapes or [o.shape])]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_asked(kind):
    assert sum(1 for _ in asked(kind)) > 20


@pytest.mark.parametrize(
    ("kind", "fact"), [("colour", "colour"), ("shape", "shape"), ("where", "place"), ("size", "size")]
)
def test_a_property_is_that_of_the_only_object_that_fits(kind, fact):
    for scene, question in asked(kind):
        (item,) = named(scene, question.text)
        assert getattr(item, fact) == question.answer


def test_count_is_the_number_of_objects_that_fit():
    for scene, question in asked("count"):
        assert int(question.answer) == len(named(scene, question.text))


def test_existence_is_whether_any_object_fits_and_balanced():
    answers = []
    for scene, question in asked("existence"):
        assert (question.answer == "yes") == bool(named(scene, question.text))
        answers.append(question.answer)
    assert 0.4 < answers.count("yes") / len(answers) < 0.6


def test_relation_names_the_only_object_on_that_side():
    for scene, question in asked("relation"):
        (item,) = named(scene, question.text.split(" the ", 1)[1])
        sides = {
            "left of": [o for o in scene.objects if o.x < item.x],
            "right of": [o for o in scene.objects if o.x > item.x],
            "above": [o for o in scene.objects if o.y < item.y],
            "below": [o for o in scene.objects if o.y > item.y],
        }
        found = next(objects for side, objects in sides.items() if side in question.text)
        assert question.answer == (f"{found[0].colour} {found[0].shape}" if found else "nothing")
        assert len(found) <= 1


def test_reading_is_a_character_of_the_picture():
    for scene, question in asked("reading"):
        fitting = [o.character for o in named(scene, question.text) if o.character]
        assert question.answer in fitting


def test_a_description_names_every_object():
    for scene, question in asked("description", 50):
        for item in scene.objects:
            assert f"{item.size} {item.colour} {item.shape}" in question.answer
            assert item.place in question.answer


def test_several_questions_are_of_the_kinds_asked_for():
    scene = random_scene(random.Random(3), 4)
    questions = ask_several(scene, 40, random.Random(0), SHORT_ANSWER_KINDS)
    assert len(questions) == 40
    assert {q.kind for q in questions} <= set(SHORT_ANSWER_KINDS)
