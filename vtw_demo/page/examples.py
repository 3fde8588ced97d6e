"""Pictures with questions that fit them: those that ship with the demo, and random scenes."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vtw_demo.embedded.questions import KINDS, ask
from vtw_demo.embedded.scenes import draw, random_scene

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "examples"
PICTURE_SIDE = 448
# For pictures of which nothing is known.
GENERAL_QUESTIONS = (
    "Describe the picture.",
    "How many objects are there?",
    "What color is it?",
    "What shape is it?",
    "What is written in the picture?",
)


@dataclass(frozen=True)
class Example:
    """A picture's file, the question it comes with, and others to suggest."""

    picture: Path
    question: str
    suggestions: tuple[str, ...]


def load_examples(folder: Path = FOLDER) -> tuple[Example, ...]:
    listed = json.loads((folder / "examples.json").read_text(encoding="utf-8"))
    return tuple(Example(folder / entry["picture"], entry["question"], tuple(entry["suggestions"])) for entry in listed)


def random_example(seed: int) -> tuple[Image.Image, tuple[str, ...]]:
    """A scene of 2 to 5 objects, the same for the same seed, and a question of each kind that it allows, in random
    order."""
    generator = random.Random(seed)
    scene = random_scene(generator, generator.randint(2, 5))
    asked = [ask(scene, kind, generator) for kind in KINDS]
    questions = [question.text for question in asked if question is not None]
    generator.shuffle(questions)
    return draw(scene, PICTURE_SIDE), tuple(questions)
