"""Links that restore what is shown: a picture of the examples or a random scene, the question, K and the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vtw_demo.page.examples import Example, random_example


@dataclass(frozen=True)
class Restored:
    """What a link says; None where it says nothing. `problems` are sentences about what can't be restored."""

    picture: Any = None
    origin: dict[str, str] | None = None
    question: str | None = None
    suggestions: tuple[str, ...] = ()
    layer: int | None = None
    problems: tuple[str, ...] = ()


def restore(
    parameters: Mapping[str, str], examples: Sequence[Example], model: str, layers: int, longest_question: int
) -> Restored:
    """Read a link's parameters: `example` or `scene`, `question`, `layer`, `model`; none of them must be there."""
    problems = []
    asked = parameters.get("model", model)
    if asked != model:
        problems.append(f"The link is of the model {asked!r}; this page runs {model!r}.")
    picture: Any = None
    origin: dict[str, str] | None = None
    question: str | None = None
    suggestions: tuple[str, ...] = ()
    if name := parameters.get("example"):
        found = next((example for example in examples if example.picture.stem == name), None)
        if found is None:
            problems.append(f"There is no example {name!r}.")
        else:
            picture, origin = str(found.picture), {"example": name}
            question, suggestions = found.question, found.suggestions
    elif seed := parameters.get("scene"):
        if seed.isascii() and seed.isdigit() and len(seed) <= 9:
            picture, suggestions = random_example(int(seed))
            origin, question = {"scene": seed}, suggestions[0]
        else:
            problems.append(f"A scene has a number of up to 9 digits; this is {seed!r}.")
    if given := parameters.get("question", "").strip():
        question = given[:longest_question]
    layer = None
    if text := parameters.get("layer"):
        if text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= layers:
            layer = int(text)
        else:
            problems.append(f"The link's withdrawal layer must be from 1 to {layers}; this is {text!r}.")
    return Restored(picture, origin, question, suggestions, layer, tuple(problems))
