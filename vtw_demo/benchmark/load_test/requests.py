"""What visitors ask: random scenes with questions that fit them, each with its own withdrawal layer."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from typing import Any

from vtw_demo.page.examples import random_example

LONGEST_ANSWER = 48


@dataclass(frozen=True)
class Request:
    """`picture` is a PNG file."""

    picture: bytes
    question: str
    layer: int
    max_new_tokens: int


@dataclass(frozen=True)
class Answers:
    """Both runs' texts and tokens: what has to be the same whoever else is there."""

    full: str
    withdrawn: str
    full_tokens: tuple[int, ...]
    withdrawn_tokens: tuple[int, ...]

    @classmethod
    def read(cls, comparison: dict[str, Any]) -> Answers:
        """Of what `/compare` gives."""
        full, withdrawn = comparison["full"], comparison["withdrawn"]
        return cls(full["answer"], withdrawn["answer"], tuple(full["tokens"]), tuple(withdrawn["tokens"]))


def random_request(seed: int, layers: int, longest_answer: int = LONGEST_ANSWER) -> Request:
    """The same for the same seed; other seeds have other pictures. `layers` is L."""
    generator = random.Random(seed)
    picture, questions = random_example(seed)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return Request(
        picture=file.getvalue(),
        question=generator.choice(questions),
        layer=generator.randint(1, layers),
        max_new_tokens=generator.randint(1, longest_answer),
    )
