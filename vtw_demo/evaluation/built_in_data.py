"""Data that needs no file: fresh scenes, their descriptions, and the test split of easy-vqa."""

from __future__ import annotations

import random
from functools import partial

from vtw_demo.embedded.questions import SHORT_ANSWER_KINDS, ask, ask_several
from vtw_demo.embedded.scenes import MAXIMUM_OBJECTS, draw, random_scene
from vtw_demo.evaluation.samples import EvaluationData, EvaluationSample
from vtw_demo.evaluation.scores import description_match

SCENES = 5000
DESCRIPTIONS = 1000
DESCRIPTION_TOKENS = 256


def fresh_scenes(count: int | None = None, seed: int = 0, objects: int = MAXIMUM_OBJECTS) -> EvaluationData:
    """One short-answer question each about `count` scenes of 1 to `objects` objects; kinds evenly among those that fit.

    A scene depends on the seed and its number alone, and on a seed that training never uses: its own all name a stage.
    """
    samples = []
    for number in range(SCENES if count is None else count):
        generator = random.Random(f"{seed} evaluation {number}")
        scene = random_scene(generator, generator.randint(1, objects))
        (asked,) = ask_several(scene, 1, generator, SHORT_ANSWER_KINDS)
        samples.append(
            EvaluationSample(f"scene {number}", asked.kind, asked.text, (asked.answer,), partial(draw, scene))
        )
    return EvaluationData(f"fresh scenes of 1 to {objects} objects", tuple(samples))


def scene_descriptions(count: int | None = None, seed: int = 0, objects: int = MAXIMUM_OBJECTS) -> EvaluationData:
    """`count` further scenes to describe. An answer is right with every object, its colour and its place."""
    samples = []
    for number in range(DESCRIPTIONS if count is None else count):
        generator = random.Random(f"{seed} evaluation description {number}")
        scene = random_scene(generator, generator.randint(1, objects))
        asked = ask(scene, "description", generator)
        assert asked is not None
        samples.append(
            EvaluationSample(f"scene {number}", asked.kind, asked.text, (asked.answer,), partial(draw, scene))
        )
    name = f"descriptions of scenes of 1 to {objects} objects"
    return EvaluationData(name, tuple(samples), description_match, DESCRIPTION_TOKENS)


def easy_vqa_test(count: int | None = None, seed: int = 0) -> EvaluationData:
    """The questions of easy-vqa's test split, or `count` of them at random, picture by picture; the kind of question is
    what it asks for. Raises ValueError where the package isn't installed."""
    try:
        from vtw_demo.embedded.easy_vqa_data import easy_vqa_pictures
    except ImportError as error:
        raise ValueError("The package easy-vqa isn't installed: pip install easy-vqa==1.0.") from error
    samples = [
        EvaluationSample(
            f"{pictured.path.name}: {question}", _easy_vqa_kind(question, answer), question, (answer,), pictured.picture
        )
        for pictured in easy_vqa_pictures("test")
        for question, answer in pictured.questions
    ]
    if count is not None:
        chosen = random.Random(f"{seed} easy-vqa").sample(range(len(samples)), min(count, len(samples)))
        samples = [samples[index] for index in sorted(chosen)]
    return EvaluationData("easy-vqa, test split", tuple(samples))


def _easy_vqa_kind(question: str, answer: str) -> str:
    """Its questions come without one: they ask for a colour, a shape, or yes or no."""
    if answer in ("yes", "no"):
        return "yes or no"
    return "colour" if "color" in question else "shape"
