"""What a visitor asks for, checked as far as that takes no model."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from PIL import Image

from vtw_demo.picture import open_picture


@dataclass(frozen=True)
class Query:
    """One picture, one question, and how to answer it."""

    picture: Image.Image
    question: str
    layer: int
    max_new_tokens: int

    @classmethod
    def read(cls, picture_file: Any, question: Any, layer: Any, max_new_tokens: Any) -> Query:
        """From what the browser or an API client sent. Raises ValueError, in a sentence for people."""
        if not isinstance(question, str | None):
            raise ValueError(f"The question must be text; this is {question!r}.")
        if not (question or "").strip():
            raise ValueError("The question is empty: type what you want to know about the picture.")
        return cls(
            picture=open_picture(_path(picture_file)),
            question=str(question),
            layer=whole_number("withdrawal layer", layer),
            max_new_tokens=whole_number("number of new tokens", max_new_tokens),
        )

    @cached_property
    def identity(self) -> tuple[str, str, int]:
        """Equal for two queries whose full runs are the same: picture, question and tokens cap, but any layer."""
        pixels = hashlib.sha256(repr(self.picture.size).encode() + self.picture.tobytes()).hexdigest()
        return pixels, self.question.strip(), self.max_new_tokens


def _path(file: Any) -> str:
    """Of a file that Gradio has stored: a mapping with its `path`."""
    path = file.get("path") if isinstance(file, dict) else None
    if not isinstance(path, str) or not path:
        raise ValueError("There is no picture: upload one, paste one, or choose an example.")
    return path


def whole_number(name: str, value: Any) -> int:
    # JSON knows no whole numbers: 7.0 is one.
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"The {name} must be a whole number; this is {value!r}.")
    return value


def layer_range(first: Any, last: Any, layers: int) -> tuple[int, ...]:
    """The withdrawal layers from `first` to `last`. Raises ValueError, in a sentence for people."""
    first, last = whole_number("first K", first), whole_number("last K", last)
    if not 1 <= first <= last <= layers:
        raise ValueError(f"The range of K must lie within 1 to {layers}; this is {first} to {last}.")
    return tuple(range(first, last + 1))


def read_threshold(value: Any) -> float:
    """A threshold of KL divergence. Raises ValueError, in a sentence for people."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"The threshold must be a number from 0 on, for example 0.003; this is {value!r}.")
    return float(value)
