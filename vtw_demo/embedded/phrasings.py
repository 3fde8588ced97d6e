"""Other ways to ask the questions of `questions.py`, in two sets: for training, and for testing only."""

import json
import random
import re
from dataclasses import replace
from pathlib import Path

from vtw_demo.embedded.questions import Question

# How a question of each kind is taken apart: its noun, and what else it names.
_PARTS: dict[str, str] = {
    "colour": r"(?:What colou?r is|What is the colou?r of|Which colou?r does) (?P<noun>.+?)(?: have)?\?",
    "shape": r"(?:What shape is|What is|Which shape is) (?P<noun>.+)\?",
    "count": r"How many (?P<noun>.+) (?:are there|do you see|are in the picture)\?",
    "existence": r"(?:Is there|Do you see|Does the picture show) (?P<noun>.+?)(?: in the picture)?\?",
    "where": r"(?:Where is|In which part of the picture is|Where do you see) (?P<noun>.+)\?",
    "relation": r"(?:What|Which object) is (?P<direction>left of|right of|above|below) (?P<noun>.+)\?",
    "size": r"(?:Is|How big is|What size is) (?P<noun>.+?)(?: small or large)?\?",
    "reading": r"What (?:is written on|does) (?P<noun>.+?)(?: say)?\?",
    "description": r".*",
}
# By kind. TESTED is never trained on.
TRAINED: dict[str, list[str]]
TESTED: dict[str, list[str]]
TRAINED, TESTED = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")).values()


def rephrased(question: Question, generator: random.Random, ways: dict[str, list[str]] = TRAINED) -> Question:
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
