"""What a model is asked in an evaluation: pictures with a question each, and the right answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vtw_demo.errors import UserError
from vtw_demo.evaluation.scores import exact_match

SHORT_ANSWER_TOKENS = 32


@dataclass(frozen=True)
class EvaluationSample:
    """One question about one picture.

    - `name`: where it is from.
    - `kind`: of question; "" where the data tells none.
    - `references`: the right answers, one or several.
    - `open`: gives the picture. Pictures are opened when they are asked about: thousands take too much memory.

    Raises ValueError for an empty question, and without a reference.
    """

    name: str
    kind: str
    question: str
    references: tuple[str, ...]
    open: Callable[[], Image.Image]

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise ValueError(f"The question of {self.name} is empty.")
        if not self.references:
            raise ValueError(f"{self.name} has no right answer.")


@dataclass(frozen=True)
class EvaluationData:
    """A data set.

    - `score`: how right an answer is, 0 to 1, given the references.
    - `max_new_tokens`: how long an answer may get.

    Raises ValueError without samples.
    """

    name: str
    samples: tuple[EvaluationSample, ...]
    score: Callable[[str, Sequence[str]], float] = exact_match
    max_new_tokens: int = SHORT_ANSWER_TOKENS

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError(f"{self.name} has no samples.")


def picture_fingerprint(picture: Image.Image) -> str:
    """Equal for pictures with the same pixels."""
    said = f"{picture.mode} {picture.size}"
    return hashlib.sha256(said.encode() + picture.tobytes()).hexdigest()[:16]


def references_of(value: Any) -> tuple[str, ...]:
    """The right answers that a field holds: one, or a list of them; those of VQA are objects with an `answer`.

    Raises ValueError for an empty field, and what is no answer.
    """
    listed = value if isinstance(value, list | tuple) else [value]
    found = []
    for item in listed:
        written = item.get("answer") if isinstance(item, dict) else item
        if not isinstance(written, str | int | float):
            raise UserError(f"an answer must be text, a number, or a list of these; this is {value!r}")
        text = {True: "yes", False: "no"}[written] if isinstance(written, bool) else str(written)
        if not text.strip():
            raise UserError("the answer is empty")
        found.append(text)
    if not found:
        raise UserError("the answer is missing")
    return tuple(found)
