"""What a visitor asks for, checked as far as that takes no model; what is wrong is raised as UserError."""

from __future__ import annotations

import hashlib
import math
import reprlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vtw_demo.errors import UserError
from vtw_demo.models.devices import on_zero_gpu
from vtw_demo.models.image import read_picture
from vtw_demo.models.picture_detail import Detail
from vtw_demo.models.prompt import Prompt
from vtw_demo.models.question import read_question
from vtw_demo.models.video import Clip, FrameSampling, Shown, contact_sheet, find_clip
from vtw_demo.models.vision_language_model import VisionLanguageModel

LONGEST_QUESTION = 20_000


@dataclass(frozen=True)
class Query:
    """One picture or clip, one question, and how to answer it. `note` is a sentence about the picture, "" for most;
    `detail`: how much of it the model is shown; `beside`: what runs beside withdrawal, as of `compare`."""

    picture: Shown
    question: str
    layer: int
    max_new_tokens: int
    note: str = ""
    detail: Detail = "usual"
    beside: str | None = None

    @classmethod
    def read(
        cls, picture_file: Any, question: Any, layer: Any, max_new_tokens: Any, sampling: FrameSampling | None = None
    ) -> Query:
        """From what the browser or an API client sent, for a model with this `sampling` of clips."""
        text = read_asked(question)
        if layer == "auto":
            raise UserError("Here the withdrawal layer is a number; the library and the command `compare` take 'auto'.")
        layer = whole_number("withdrawal layer", layer)
        max_new_tokens = whole_number("number of new tokens", max_new_tokens)
        # Of a file that Gradio has stored: a mapping with its `path`.
        path = picture_file.get("path") if isinstance(picture_file, dict) else None
        if not isinstance(path, str) or not path:
            raise UserError("There is no picture: upload one, paste one, or choose an example.")
        try:
            if clip := find_clip(path, sampling):
                return cls(clip, text, layer, max_new_tokens)
            picture, note = read_picture(path)
        except OSError as error:
            raise UserError("The picture is no longer on the server: choose it again.") from error
        return cls(picture, text, layer, max_new_tokens, note)

    def prompt(self, vlm: VisionLanguageModel) -> Prompt:
        """The query as a model is asked it. On ZeroGPU its inputs wait in this machine's memory for a lease."""
        prompt = vlm.prompt(self.picture, self.question)
        return prompt.to("cpu") if on_zero_gpu() else prompt

    @cached_property
    def identity(self) -> tuple[str, str, int, Detail]:
        """Equal for two queries whose full runs are the same: of any layer, but all else is."""
        times = self.picture.times if isinstance(self.picture, Clip) else ()
        pixels = contact_sheet(self.picture)
        seen = hashlib.sha256(repr((times, pixels.size)).encode() + pixels.tobytes()).hexdigest()
        return seen, self.question, self.max_new_tokens, self.detail


def read_asked(question: Any) -> str:
    text = read_question(question)
    if len(text) > LONGEST_QUESTION:
        raise UserError(
            f"The question is too long: it has {len(text)} characters and may have up to {LONGEST_QUESTION}."
        )
    return text


def whole_number(name: str, value: Any) -> int:
    # JSON knows no whole numbers: 7.0 is one.
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"The {name} must be a whole number; this is {reprlib.repr(value)}.")
    return value


def layer_range(first: Any, last: Any, layers: int) -> tuple[int, ...]:
    first, last = whole_number("first K", first), whole_number("last K", last)
    if not 1 <= first <= last <= layers:
        raise UserError(f"The range of K must lie within 1 to {layers}; this is {first} to {last}.")
    return tuple(range(first, last + 1))


def read_beside(value: Any) -> str | None:
    """What is to run beside; nothing where it is empty."""
    if value is not None and not isinstance(value, str):
        raise UserError(f"What runs beside is a name, for example fastv, or a recipe; this is {reprlib.repr(value)}.")
    return value or None


def read_threshold(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise UserError(f"The threshold must be a number from 0 on, for example 0.003; this is {reprlib.repr(value)}.")
    return float(value)
