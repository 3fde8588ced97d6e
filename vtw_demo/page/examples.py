"""Pictures with questions that fit them: those that ship with the demo, random scenes, and what a link restores."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtw_demo.embedded.questions import KINDS, ask
from vtw_demo.embedded.scenes import draw, random_scene
from vtw_demo.measurements.equal_flops import RIVALS
from vtw_demo.server.query import LONGEST_QUESTION

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "examples"
PICTURE_SIDE = 448
GENERAL_QUESTIONS = (
    "Describe the picture.",
    "How many objects are there?",
    "What color is it?",
    "What shape is it?",
    "What is written in the picture?",
)


@dataclass(frozen=True)
class Example:
    picture: Any  # drawn, or its file
    question: str
    suggestions: tuple[str, ...]
    origin: dict[str, str]  # what a link says of it
    is_photo: bool = False  # the embedded model knows nothing of these


def load_examples() -> tuple[Example, ...]:
    """Those that ship with the demo."""
    listed = json.loads((FOLDER / "examples.json").read_text(encoding="utf-8"))
    pictures = [FOLDER / entry["picture"] for entry in listed]
    return tuple(
        Example(picture, entry["question"], tuple(entry["suggestions"]), {"example": picture.stem}, "source" in entry)
        for picture, entry in zip(pictures, listed, strict=True)
    )


def scene_example(seed: int) -> Example:
    """A scene of 2 to 5 objects with a question of each kind that it allows, the same for the same seed."""
    generator = random.Random(seed)
    scene = random_scene(generator, generator.randint(2, 5))
    asked = [ask(scene, kind, generator) for kind in KINDS]
    questions = [question.text for question in asked if question is not None]
    generator.shuffle(questions)
    return Example(draw(scene, PICTURE_SIDE), questions[0], tuple(questions), {"scene": str(seed)})


@dataclass(frozen=True)
class Restored:
    """What a link says; None where it says nothing."""

    example: Example | None
    question: str | None
    layer: int | None
    problems: tuple[str, ...]  # sentences about what can't be restored
    is_of_own_picture: bool = False
    detail: str | None = None
    beside: str | None = None


def restore(
    parameters: Mapping[str, str],
    examples: Sequence[Example],
    model: str,
    layers: int,
    details: Sequence[str] = ("usual",),
) -> Restored:
    """Read a link's parameters, any of `example`, `scene`, `picture=own`, `question`, `layer`, `model`, `detail` and
    `beside`."""
    problems = []
    if (asked := parameters.get("model", model)) != model:
        problems.append(f"The link is of the model {asked!r}; this page runs {model!r}.")
    example, layer = None, None
    if name := parameters.get("example"):
        example = next((example for example in examples if example.origin["example"] == name), None)
        if example is None:
            problems.append(f"There is no example {name!r}.")
    elif seed := parameters.get("scene"):
        if seed.isascii() and seed.isdigit() and len(seed) <= 9:
            example = scene_example(int(seed))
        else:
            problems.append(f"A scene has a number of up to 9 digits; this is {seed!r}.")
    question = parameters.get("question", "").strip() or (example.question if example else None)
    if question and len(question) > LONGEST_QUESTION:
        problems.append(f"The link's question is cut: it may have up to {LONGEST_QUESTION} characters.")
        question = question[:LONGEST_QUESTION]
    if text := parameters.get("layer"):
        if text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= layers:
            layer = int(text)
        else:
            problems.append(f"The link's withdrawal layer must be from 1 to {layers}; this is {text!r}.")
    detail = parameters.get("detail")
    if detail is not None and detail not in details:
        problems.append(f"The link's picture detail is {detail!r}; this model has {', '.join(details)}.")
        detail = None
    beside = parameters.get("beside")
    if beside is not None and beside not in RIVALS:
        problems.append(f"Beside withdrawal, the link has {beside!r}; there are {', '.join(RIVALS)}.")
        beside = None
    return Restored(example, question, layer, tuple(problems), "picture" in parameters, detail, beside)
