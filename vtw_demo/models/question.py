"""A question as a model can be asked it."""

from __future__ import annotations

import reprlib
import unicodedata
from typing import Any

from vtw_demo.errors import UserError

EMPTY = "The question is empty: type what you want to know about the picture."
# Control characters, and halves of a pair: no text has them, and some tokenizers fail at them.
_LEFT_OUT = ("Cc", "Cs")
_BLANK = ("Zs", "Zl", "Zp", "Cf")


def read_question(question: Any) -> str:
    """What was typed, stripped; control characters but tabs and line breaks are left out.

    Raises ValueError, in a sentence for people, for what is no text and what shows nothing.
    """
    if not isinstance(question, str | None):
        raise UserError(f"The question must be text; this is {reprlib.repr(question)}.")
    text = without_control_characters(question or "").strip()
    if all(unicodedata.category(character) in _BLANK or character.isspace() for character in text):
        raise UserError(EMPTY)
    return text


def without_control_characters(text: str) -> str:
    return "".join(
        character for character in text if character in "\t\n\r" or unicodedata.category(character) not in _LEFT_OUT
    )
