"""What a model is asked in an evaluation: people's own data; scenes, plain and otherwise, photos, and easy-vqa."""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from vtw_demo.comparison.data_files import read_table
from vtw_demo.comparison.data_rows import Columns, DataSample, read_rows
from vtw_demo.embedded.drawing_styles import badly_kept, random_style
from vtw_demo.embedded.phrasings import TESTED, rephrased
from vtw_demo.embedded.questions import SHORT_ANSWER_KINDS, Question, ask, ask_several
from vtw_demo.embedded.scenes import MAXIMUM_OBJECTS, Scene, SceneObject, draw, random_scene
from vtw_demo.errors import UserError
from vtw_demo.evaluation.metrics import description_match, exact_match

SHORT_ANSWER_TOKENS = 32
PHOTOS = 200


@dataclass(frozen=True)
class EvaluationData:
    """A data set; `score` says how right an answer is, 0 to 1, given the references."""

    name: str
    samples: tuple[DataSample, ...]
    score: Callable[[str, Sequence[str]], float] = exact_match
    max_new_tokens: int = SHORT_ANSWER_TOKENS


def read_data(
    name: str,
    columns: Columns,
    count: int | None = None,
    split: str = "test",
    config: str | None = None,
    seed: int = 0,
    strict: bool = False,
) -> tuple[EvaluationData, tuple[str, ...]]:
    """A user's data (`read_table`), and what was skipped (`read_rows`)."""
    table = read_table(name, split, config)
    samples, bad = read_rows(table, columns, count, seed, strict, answered=True)
    return EvaluationData(table.title, samples), bad


def picture_fingerprint(picture: Image.Image) -> str:
    """Equal for pictures with the same pixels."""
    said = f"{picture.mode} {picture.size}"
    return hashlib.sha256(said.encode() + picture.tobytes()).hexdigest()[:16]


def _about_scenes(
    name: str,
    usual_count: int,
    stage: str,
    make: Callable[[str], tuple[Question, Callable[[], Image.Image]]],
    count: int | None = None,
    seed: int = 0,
    **options: Any,
) -> EvaluationData:
    """One question each about `count` scenes of 1 to 6 objects. `make` gives it and the picture, from a seed that names
    seed and number alone, and that training never uses: its own all name a stage."""
    samples = []
    for number in range(count or usual_count):
        asked, shown = make(f"{seed} {stage} {number}")
        samples.append(DataSample(f"scene {number}", asked.kind, asked.text, (asked.answer,), shown))
    return EvaluationData(name, tuple(samples), **options)


def _asked(seed: str) -> tuple[Scene, Question]:
    """A short-answer question; kinds evenly among those that fit."""
    generator = random.Random(seed)
    scene = random_scene(generator, generator.randint(1, MAXIMUM_OBJECTS))
    (asked,) = ask_several(scene, 1, generator, SHORT_ANSWER_KINDS)
    return scene, asked


def _plain(seed: str) -> tuple[Question, Callable[[], Image.Image]]:
    scene, asked = _asked(seed)
    return asked, partial(draw, scene)


def _rephrased(seed: str) -> tuple[Question, Callable[[], Image.Image]]:
    """In words that training never used. A few questions have no other words: these are drawn anew."""
    generator = random.Random(seed)
    while True:
        scene, asked = _asked(f"{seed} {generator.random()}")
        said = rephrased(asked, generator, TESTED)
        if said.text != asked.text:
            return said, partial(draw, scene)


def _described(seed: str) -> tuple[Question, Callable[[], Image.Image]]:
    generator = random.Random(seed)
    scene = random_scene(generator, generator.randint(1, MAXIMUM_OBJECTS))
    asked = ask(scene, "description", generator)
    assert asked is not None
    return asked, partial(draw, scene)


def _drawn_otherwise(seed: str) -> tuple[Question, Callable[[], Image.Image]]:
    """As if drawn by hand or in a paint program, turned a little, blurred, stored as JPEG."""
    scene, asked = _asked(seed)
    return asked, partial(_seeded, _otherwise, scene, seed)


def _seeded(make: Callable[[Any, random.Random], Image.Image], subject: Any, seed: str) -> Image.Image:
    """The same picture each time: an evaluation opens it more than once."""
    return make(subject, random.Random(f"{seed} picture"))


def _otherwise(scene: Scene, generator: random.Random) -> Image.Image:
    """At the size and aspect ratio at which the objects of its style look unstretched."""
    style = random_style(generator)
    picture, side = badly_kept(draw(scene, style=style), generator), generator.randint(120, 640)
    across, down = style.stretch
    return picture.resize((round(side / across), round(side / down)), Image.Resampling.BICUBIC)


def unknown_photos(count: int | None = None, seed: int = 0) -> EvaluationData:
    """Parts of photos that training never saw, with questions about shapes: right is the modest answer alone."""
    try:
        from vtw_demo.embedded.unknown_pictures import MODEST_ANSWER, TESTED_PHOTOS, part_of_photo, photos
    except ImportError as error:
        raise UserError("The package scikit-image isn't installed: pip install scikit-image.") from error
    samples = []
    for name, photo in zip(TESTED_PHOTOS, photos(TESTED_PHOTOS), strict=True):
        for number in range((count or PHOTOS) // len(TESTED_PHOTOS) or 1):
            of_sample = f"{seed} evaluation {name} {number}"
            _, asked = _asked(of_sample)
            shown = partial(_seeded, part_of_photo, photo, of_sample)
            samples.append(DataSample(f"{name} {number}", "", asked.text, (MODEST_ANSWER,), shown))
    return EvaluationData("photos, of which it knows nothing", tuple(samples))


def easy_vqa_test(count: int | None = None, seed: int = 0) -> EvaluationData:
    """Of easy-vqa's test split, or `count` of it at random; the kind of question is what it asks for."""
    try:
        from vtw_demo.embedded.easy_vqa_data import easy_vqa_pictures
    except ImportError as error:
        raise UserError("The package easy-vqa isn't installed: pip install easy-vqa==1.0.") from error
    samples = []
    for pictured in easy_vqa_pictures("test"):
        for question, answer in pictured.questions:
            # Its questions come without a kind: they ask for a colour, a shape, or yes or no.
            kind = "yes or no" if answer in ("yes", "no") else "colour" if "color" in question else "shape"
            name = f"{pictured.path.name}: {question}"
            samples.append(DataSample(name, kind, question, (answer,), pictured.picture))
    if count is not None:
        chosen = random.Random(f"{seed} easy-vqa").sample(range(len(samples)), min(count, len(samples)))
        samples = [samples[index] for index in sorted(chosen)]
    return EvaluationData("easy-vqa, test split", tuple(samples))


def free_words(count: int | None = None, seed: int = 0) -> EvaluationData:
    """Prompts in free words, written by hand before the embedded model's training ended and never trained on."""
    samples = list[DataSample]()
    for objects, prompts in json.loads(Path(__file__).with_name("free_words.json").read_text(encoding="utf-8")):
        pale = ((172, 200, 204), (168, 196, 200))
        scene = Scene(tuple(SceneObject(*item) for item in objects), pale, "gradient", len(samples))
        for prompt, answer in prompts:
            samples.append(DataSample(f"scene {len(samples)}", "", prompt, (answer,), partial(draw, scene)))
    return EvaluationData("prompts in free words", tuple(samples[:count]), max_new_tokens=96)


BUILT_IN: dict[str, Callable[[int | None, int], EvaluationData]] = {
    "scenes": partial(_about_scenes, f"fresh scenes of 1 to {MAXIMUM_OBJECTS} objects", 5000, "evaluation", _plain),
    "rephrased": partial(_about_scenes, "questions in words never trained on", 300, "evaluation rephrased", _rephrased),
    "drawn-otherwise": partial(
        _about_scenes, "scenes drawn and kept otherwise", 300, "evaluation drawn", _drawn_otherwise
    ),
    # An answer is right with every object, its colour and its place.
    "descriptions": partial(
        _about_scenes,
        f"descriptions of scenes of 1 to {MAXIMUM_OBJECTS} objects",
        500,
        "evaluation description",
        _described,
        score=description_match,
        max_new_tokens=256,
    ),
    "free-words": free_words,
    "easy-vqa": easy_vqa_test,
    "photos": unknown_photos,
}
