"""Other ways to ask the questions of `questions.py`, in two sets, for training and for testing only; and free words."""

import random
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from vtw_demo.embedded.questions import SHORT_ANSWER_KINDS, Question, ask_several, short_name, tell, unique
from vtw_demo.embedded.scenes import COLOURS, SHAPES, Scene
from vtw_demo.files import data_beside

Phrasings = dict[str, list[str]]

# By kind: how a question is taken apart, its noun and what else it names; other ways to ask, of which TESTED is never
# trained on; and what free words are made of.
_PARTS: dict[str, str]
TRAINED: Phrasings
TESTED: Phrasings
_FREE: dict[str, Any]
_PARTS, TRAINED, TESTED, _FREE = data_beside(__file__, "phrasings.json").values()


def rephrased(question: Question, generator: random.Random, ways: Phrasings = TRAINED) -> Question:
    """The same question in other words; one that can't be taken apart stays as it is."""
    parts = re.fullmatch(_PARTS[question.kind], question.text) if question.kind in ways else None
    if parts is None:
        return question
    named = parts.groupdict()
    if question.kind == "shape" and named["noun"] in ("the shape", "in the picture"):
        named["noun"] = "the object"
    text = generator.choice(ways[question.kind]).format(**named)
    return replace(question, text=text[0].upper() + text[1:] if text.endswith((".", "?")) else text)


def carelessly_typed(text: str, generator: random.Random) -> str:
    """As people type: now and then all small, without its last mark."""
    if generator.random() < 0.15:
        text = text.lower()
    if generator.random() < 0.15:
        text = text.rstrip("?.")
    return text


def freely_asked(scene: Scene, generator: random.Random) -> Question:
    """Something about the scene in free words: in passing, two things at once, without a verb."""
    asked = None
    while asked is None:
        asked = generator.choice(_FORMS)(scene, generator)
    text, answer = asked
    if generator.random() < 0.5:
        text = re.sub(rf"\b({'|'.join(COLOURS)}) (object|shape|thing)\b", r"\1 one", text)
    if generator.random() < 0.15:
        text = generator.choice(_FREE["openings"]) + text[0].lower() + text[1:]
    return Question("free words", text, answer)


def _one(scene: Scene, generator: random.Random) -> tuple[str, str]:
    (asked,) = ask_several(scene, 1, generator, (*SHORT_ANSWER_KINDS, "description"))
    said = rephrased(asked, generator)
    return said.text, said.answer


def _two(scene: Scene, generator: random.Random) -> tuple[str, str]:
    first, second = ask_several(scene, 2, generator, SHORT_ANSWER_KINDS)
    if generator.random() < 0.3:
        first, second = rephrased(first, generator), rephrased(second, generator)
    texts = [asked.text[0].lower() + asked.text[1:].rstrip("?.") for asked in (first, second)]
    text = generator.choice(_FREE["joined"]).format(first=texts[0], second=texts[1])
    return text[0].upper() + text[1:], f"{first.answer}, {second.answer}"


def _about(scene: Scene, generator: random.Random) -> tuple[str, str]:
    item, noun = unique(scene, generator)
    return generator.choice(_FREE["about"]).format(noun=f"the {noun}"), tell(item)


def _at(scene: Scene, generator: random.Random) -> tuple[str, str] | None:
    item = generator.choice(scene.objects)
    if sum(other.place == item.place for other in scene.objects) > 1:
        return None
    place = item.place.replace("center", generator.choice(("center", "middle")))
    at = f"{generator.choice(('at', 'in'))} the {place}"
    return generator.choice(_FREE["at"]).format(at=at), short_name(item)


def _any(scene: Scene, generator: random.Random) -> tuple[str, str]:
    text = generator.choice(_FREE["any"])
    fact, values = ("shape", SHAPES) if "{shape}" in text else ("colour", tuple(COLOURS))
    present = [getattr(item, fact) for item in scene.objects]
    value = generator.choice(present if generator.random() < 0.5 else values)
    return text.format(**{fact: value}), "yes" if value in present else "no"


_FORMS: tuple[Callable[[Scene, random.Random], tuple[str, str] | None], ...] = (_one, _one, _two, _about, _at, _any)
