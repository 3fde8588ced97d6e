"""Other ways to ask the questions of `questions.py`, in two sets: for training, and for testing only."""

import json
import random
import re
from dataclasses import replace
from pathlib import Path

from vtw_demo.embedded.questions import Question

Phrasings = dict[str, list[str]]

# By kind: how a question is taken apart, its noun and what else it names; other ways to ask, of which TESTED is never
# trained on.
_PARTS: dict[str, str]
TRAINED: Phrasings
TESTED: Phrasings
_PARTS, TRAINED, TESTED = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")).values()


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
