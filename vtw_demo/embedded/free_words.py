"""Questions in free words: in passing, two things at once, without a verb."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

from vtw_demo.embedded.phrasings import TRAINED, rephrased
from vtw_demo.embedded.questions import SHORT_ANSWER_KINDS, Question, ask_several, short_name, tell, unique
from vtw_demo.embedded.scenes import COLOURS, SHAPES, Scene

_TEXTS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
_WAYS = {kind: [*ways, *TRAINED.get(kind, [])] for kind, ways in _TEXTS["ways"].items()}
KIND = "free words"


def freely_asked(scene: Scene, generator: random.Random) -> Question:
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
