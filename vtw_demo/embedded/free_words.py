"""Prompts in free words: for training by chance, and fifty written by hand that are never trained on."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

from vtw_demo.embedded.phrasings import TRAINED, rephrased
from vtw_demo.embedded.questions import SHORT_ANSWER_KINDS, Question, ask_several, short_name, tell, unique
from vtw_demo.embedded.scenes import COLOURS, DIAMETERS, PLACES, SHAPES, Scene, SceneObject

_TEXTS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
_WAYS = {kind: [*ways, *TRAINED.get(kind, [])] for kind, ways in _TEXTS["ways"].items()}
KIND = "free words"
_PLACES = [place for row in PLACES for place in row]


def freely_asked(scene: Scene, generator: random.Random) -> Question:
    """Something about the scene as people put it: in passing, two things at once, without a verb."""
    asked = None
    while asked is None:
        asked = generator.choice(_FORMS)(scene, generator)
    text, answer = asked
    if generator.random() < 0.5:
        text = re.sub(rf"\b({'|'.join(COLOURS)}) (object|shape|thing)\b", r"\1 one", text)
    if generator.random() < 0.15:
        text = generator.choice(_TEXTS["openings"]) + text[0].lower() + text[1:]
    if generator.random() < 0.1:
        text += generator.choice(_TEXTS["endings"])
    return Question(KIND, text, answer)


def _one(scene: Scene, generator: random.Random) -> tuple[str, str]:
    (asked,) = ask_several(scene, 1, generator, (*SHORT_ANSWER_KINDS, "description"))
    said = rephrased(asked, generator, _WAYS)
    return said.text, said.answer


def _two(scene: Scene, generator: random.Random) -> tuple[str, str]:
    first, second = (
        rephrased(asked, generator) if generator.random() < 0.3 else asked
        for asked in ask_several(scene, 2, generator, SHORT_ANSWER_KINDS)
    )
    texts = [asked.text[0].lower() + asked.text[1:].rstrip("?.") for asked in (first, second)]
    text = generator.choice(_TEXTS["joined"]).format(first=texts[0], second=texts[1])
    return text[0].upper() + text[1:], f"{first.answer}, {second.answer}"


def _about(scene: Scene, generator: random.Random) -> tuple[str, str]:
    item, noun = unique(scene, generator)
    return generator.choice(_TEXTS["about"]).format(noun=f"the {noun}"), tell(item)


def _at(scene: Scene, generator: random.Random) -> tuple[str, str] | None:
    item = generator.choice(scene.objects)
    if sum(other.place == item.place for other in scene.objects) > 1:
        return None
    at = "in" if item.place == "center" or " " in item.place else "at"
    said = f"{at} the {item.place}" if generator.random() < 0.7 else f"in the {item.place}"
    if item.place == "center" and generator.random() < 0.5:
        said = "in the middle"
    return generator.choice(_TEXTS["at"]).format(at=said), short_name(item)


def _any(scene: Scene, generator: random.Random) -> tuple[str, str]:
    fact, values = generator.choice((("colour", tuple(COLOURS)), ("shape", SHAPES)))
    present = [getattr(item, fact) for item in scene.objects]
    value = generator.choice(present if generator.random() < 0.5 else values)
    texts = _TEXTS["any" if fact == "colour" else "any shape"]
    return generator.choice(texts).format(**{fact: value}), "yes" if value in present else "no"


_FORMS: tuple[Callable[[Scene, random.Random], tuple[str, str] | None], ...] = (_one, _one, _two, _about, _at, _any)


def tested_prompts() -> list[tuple[Scene, Question]]:
    """The fifty: each with the scene it is asked about, and the answer."""
    return [
        (_scene(objects, number), Question(KIND, text, answer))
        for number, (objects, prompts) in enumerate(_TEXTS["tested"])
        for text, answer in prompts
    ]


def _scene(objects: str, seed: int) -> Scene:
    """The scene that is written as "large red circle A top left, ..."."""
    generator, placed = random.Random(seed), []
    for written in objects.split(", "):
        size, colour, shape, *rest = written.split()
        character = rest.pop(0) if len(rest[0]) == 1 else None
        row, column = divmod(_PLACES.index(" ".join(rest)), 3)
        x, y = ((2 * step + 1) / 6 + generator.uniform(-0.01, 0.01) for step in (column, row))
        # As small as its size may be: so it fits into its ninth of the picture.
        diameter = DIAMETERS[size][0] + generator.uniform(0, 0.01)
        placed.append(SceneObject(shape, colour, size, x, y, diameter, generator.uniform(-8, 8), character))
    return Scene(tuple(placed), ((172, 200, 204), (168, 196, 200)), "gradient", seed)
