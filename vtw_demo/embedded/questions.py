"""Questions about a scene, with their answers, by kind."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from vtw_demo.embedded.scenes import COLOURS, PLACES, SHAPES, Scene, SceneObject
from vtw_demo.files import data_beside

# An object counts as left of another only if it is at least this share of the picture's side further left.
DIRECTION_MARGIN = 0.10
# Steps across and down.
DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
NOTHING = "nothing"
# Other words for any object.
NOUNS = ("object", "shape", "thing")
# Texts that ask for the same, and the answer.
Asked = tuple[list[str], str]
_TEXTS: dict[str, list[str]] = data_beside(__file__, "questions.json")


@dataclass(frozen=True)
class Question:
    kind: str
    text: str
    answer: str


def ask(scene: Scene, kind: str, generator: random.Random) -> Question | None:
    """A random question of `kind` about `scene`, or None where the scene gives no unambiguous one."""
    asked = _ASK[kind](scene, generator)
    if asked is None:
        return None
    texts, answer = asked
    return Question(kind, generator.choice(texts), answer)


def ask_several(scene: Scene, count: int, generator: random.Random, kinds: tuple[str, ...]) -> list[Question]:
    """`count` random questions about `scene`, kinds drawn evenly from those the scene allows."""
    asked = list[Question]()
    while len(asked) < count:
        asked += filter(None, [ask(scene, generator.choice(kinds), generator)])
    return asked


def describe(scene: Scene) -> str:
    """One sentence that names every object in reading order, row by row."""
    places = [place for row in PLACES for place in row]
    parts = [tell(item) for item in sorted(scene.objects, key=lambda item: (places.index(item.place), item.x))]
    listed = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return f"There is {listed}."


def tell(item: SceneObject) -> str:
    """All about one object."""
    article = "an" if item.character and item.character in "8AEFHLMNRSX" else "a"
    written = f" with {article} {item.character} on it" if item.character else ""
    at = "in" if item.place == "center" or " " in item.place else "at"
    return f"a {item.size} {item.colour} {item.shape}{written} {at} the {item.place}"


def short_name(item: SceneObject) -> str:
    return f"{item.colour} {item.shape}"


def unique(scene: Scene, generator: random.Random) -> tuple[SceneObject, str]:
    """An object and a noun for it that fits no other object: its shape, or colour and shape."""
    item = generator.choice(scene.objects)
    nouns = [short_name(item)]
    if _alone(scene, "shape", item):
        nouns.append(item.shape)
    if _alone(scene, "colour", item):
        nouns.append(f"{item.colour} {generator.choice(NOUNS)}")
    return item, generator.choice(nouns)


def _alone(scene: Scene, fact: str, item: SceneObject) -> bool:
    """Whether no other object has its shape, or its colour."""
    return sum(getattr(other, fact) == getattr(item, fact) for other in scene.objects) == 1


def _any_alone(scene: Scene, fact: str, generator: random.Random) -> SceneObject | None:
    alone = [item for item in scene.objects if _alone(scene, fact, item)]
    return generator.choice(alone) if alone else None


def _texts(kind: str, **named: Any) -> list[str]:
    return [text.format(**named) for text in _TEXTS[kind]]


def _colour(scene: Scene, generator: random.Random) -> Asked | None:
    spelling = generator.choice(("color", "colour"))
    if len(scene.objects) == 1 and generator.random() < 0.3:
        noun = generator.choice(("object", "shape"))
        return _texts("colour of the only object", spelling=spelling, noun=noun), scene.objects[0].colour
    item = _any_alone(scene, "shape", generator)
    return None if item is None else (_texts("colour", spelling=spelling, item=item), item.colour)


def _shape(scene: Scene, generator: random.Random) -> Asked | None:
    if len(scene.objects) == 1 and generator.random() < 0.3:
        return _texts("shape of the only object"), scene.objects[0].shape
    item = _any_alone(scene, "colour", generator)
    return None if item is None else (_texts("shape", item=item), item.shape)


def _count(scene: Scene, generator: random.Random) -> Asked:
    what = generator.random()
    if what < 0.34:
        noun, number = generator.choice(NOUNS), len(scene.objects)
    else:
        fact, values = ("shape", SHAPES) if what < 0.67 else ("colour", tuple(COLOURS))
        present = [getattr(item, fact) for item in scene.objects]
        value = generator.choice(present if generator.random() < 0.8 else values)
        noun = value if fact == "shape" else f"{value} {generator.choice(NOUNS)}"
        number = present.count(value)
    return _texts("count", noun=noun), str(number)


def _existence(scene: Scene, generator: random.Random) -> Asked | None:
    wanted = generator.random() < 0.5
    item = generator.choice(scene.objects)
    shape, colour = item.shape, item.colour
    form = generator.choice(("shape", "colour", "both"))
    if not wanted:
        # Half of the absent ones share a property with an object that is there: guessing by halves must not pay.
        kept = ""
        if form == "both" and generator.random() < 0.6:
            kept = "colour" if generator.random() < 0.5 else "shape"
        shape = shape if kept == "shape" else generator.choice(SHAPES)
        colour = colour if kept == "colour" else generator.choice(tuple(COLOURS))
    thing = generator.choice(NOUNS) if form == "colour" else shape
    noun = thing if form == "shape" else f"{colour} {thing}"
    fitting = [o for o in scene.objects if (form == "colour" or o.shape == shape)]
    there = any(form == "shape" or o.colour == colour for o in fitting)
    if there != wanted:
        return None
    named = f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
    return _texts("existence", noun=named), "yes" if there else "no"


def _relation(scene: Scene, generator: random.Random) -> Asked | None:
    item, noun = unique(scene, generator)
    direction, (across, down) = generator.choice(tuple(DIRECTIONS.items()))
    others = [o for o in scene.objects if o is not item]
    steps = [across * (o.x - item.x) + down * (o.y - item.y) for o in others]
    if any(0 < step < DIRECTION_MARGIN for step in steps):
        return None
    found = [o for o, step in zip(others, steps, strict=True) if step > 0]
    if len(found) > 1 or (not found and generator.random() < 0.75):
        return None
    return _texts("relation", direction=direction, noun=noun), short_name(found[0]) if found else NOTHING


def _fact(kind: str, fact: str, scene: Scene, generator: random.Random) -> Asked:
    item, noun = unique(scene, generator)
    return _texts(kind, noun=noun), getattr(item, fact)


def _reading(scene: Scene, generator: random.Random) -> Asked | None:
    written = [(item, item.character) for item in scene.objects if item.character]
    if not written:
        return None
    item, character = generator.choice(written)
    texts = _texts("reading", noun=short_name(item))
    if _alone(scene, "shape", item):
        texts += _texts("reading by shape", item=item)
    if len(written) == 1:
        texts += _texts("reading of the only character", sign="digit" if character.isdigit() else "letter")
    return texts, character


_ASK: dict[str, Callable[[Scene, random.Random], Asked | None]] = {
    "colour": _colour, "shape": _shape, "count": _count, "existence": _existence,
    "where": partial(_fact, "where", "place"), "relation": _relation, "size": partial(_fact, "size", "size"),
    "reading": _reading, "description": lambda scene, generator: (_texts("description"), describe(scene)),
}  # fmt: skip
KINDS: tuple[str, ...] = tuple(_ASK)
SHORT_ANSWER_KINDS: tuple[str, ...] = tuple(kind for kind in KINDS if kind != "description")
