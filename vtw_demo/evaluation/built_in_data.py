"""Data that needs no file: fresh scenes, asked plainly and otherwise, drawn plainly and otherwise, their descriptions,
photos, and the test split of easy-vqa."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from PIL import Image

from vtw_demo.embedded.drawing_styles import badly_kept, random_style, unsquared
from vtw_demo.embedded.phrasings import TESTED, rephrased
from vtw_demo.embedded.questions import SHORT_ANSWER_KINDS, Question, ask, ask_several
from vtw_demo.embedded.scenes import MAXIMUM_OBJECTS, Scene, draw, random_scene
from vtw_demo.errors import UserError
from vtw_demo.evaluation.samples import EvaluationData, EvaluationSample
from vtw_demo.evaluation.scores import description_match

SCENES = 5000
FURTHER = 300
DESCRIPTIONS = 500
PHOTOS = 200
Subject = TypeVar("Subject")
DESCRIPTION_TOKENS = 256


def fresh_scenes(count: int | None = None, seed: int = 0, objects: int = MAXIMUM_OBJECTS) -> EvaluationData:
    """One short-answer question each about `count` scenes of 1 to `objects` objects; kinds evenly among those that fit.

    A scene depends on the seed and its number alone, and on a seed that training never uses: its own all name a stage.
    """
    samples = []
    for number in range(SCENES if count is None else count):
        scene, asked = _asked(f"{seed} evaluation {number}", objects)
        samples.append(
            EvaluationSample(f"scene {number}", asked.kind, asked.text, (asked.answer,), partial(draw, scene))
        )
    return EvaluationData(f"fresh scenes of 1 to {objects} objects", tuple(samples))


def _asked(seed: str, objects: int) -> tuple[Scene, Question]:
    generator = random.Random(seed)
    scene = random_scene(generator, generator.randint(1, objects))
    (asked,) = ask_several(scene, 1, generator, SHORT_ANSWER_KINDS)
    return scene, asked


def rephrased_questions(count: int | None = None, seed: int = 0, objects: int = MAXIMUM_OBJECTS) -> EvaluationData:
    """As `fresh_scenes`, of further scenes, asked in words that training never used."""
    samples = []
    for number in range(FURTHER if count is None else count):
        of_sample = f"{seed} evaluation rephrased {number}"
        generator, asked, said = random.Random(of_sample), None, None
        # A few questions have no other words: these are drawn anew.
        while asked is None or said is None or said.text == asked.text:
            scene, asked = _asked(f"{of_sample} {generator.random()}", objects)
            said = rephrased(asked, generator, TESTED)
        samples.append(EvaluationSample(f"scene {number}", said.kind, said.text, (said.answer,), partial(draw, scene)))
    return EvaluationData("questions in words never trained on", tuple(samples))


def otherwise_drawn(count: int | None = None, seed: int = 0, objects: int = MAXIMUM_OBJECTS) -> EvaluationData:
    """As `fresh_scenes`, of further scenes: pictures of other sizes and aspect ratios, as if drawn by hand, in a paint
    program's colours, turned a little, blurred, stored as JPEG."""
    samples = []
    for number in range(FURTHER if count is None else count):
        of_sample = f"{seed} evaluation drawn {number}"
        scene, asked = _asked(of_sample, objects)
        shown = partial(_seeded, _otherwise, scene, of_sample)
        samples.append(EvaluationSample(f"scene {number}", asked.kind, asked.text, (asked.answer,), shown))
    return EvaluationData("scenes drawn and kept otherwise", tuple(samples))


def _seeded(make: Callable[[Subject, random.Random], Image.Image], subject: Subject, seed: str) -> Image.Image:
    """The same picture each time: an evaluation opens it more than once."""
    return make(subject, random.Random(f"{seed} picture"))


def _otherwise(scene: Scene, generator: random.Random) -> Image.Image:
    style = random_style(generator)
    return unsquared(badly_kept(draw(scene, style=style), generator), style, generator)


def unknown_photos(count: int | None = None, seed: int = 0) -> EvaluationData:
    """Parts of photos that training never saw, with questions about shapes: right is the modest answer alone.

    Raises ValueError where the package scikit-image isn't installed.
    """
    try:
        from vtw_demo.embedded.unknown_pictures import MODEST_ANSWER, TESTED_PHOTOS, part_of_photo, photos
    except ImportError as error:
        raise UserError("The package scikit-image isn't installed: pip install scikit-image.") from error
    samples = []
    for name, photo in zip(TESTED_PHOTOS, photos(TESTED_PHOTOS), strict=True):
        for number in range((PHOTOS if count is None else count) // len(TESTED_PHOTOS) or 1):
            of_sample = f"{seed} evaluation {name} {number}"
            _, asked = _asked(of_sample, MAXIMUM_OBJECTS)
            shown = partial(_seeded, part_of_photo, photo, of_sample)
            samples.append(EvaluationSample(f"{name} {number}", "", asked.text, (MODEST_ANSWER,), shown))
    return EvaluationData("photos, of which it knows nothing", tuple(samples))


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
        raise UserError("The package easy-vqa isn't installed: pip install easy-vqa==1.0.") from error
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
