"""How right an answer is, from 0 to 1."""

import re
from collections import Counter
from collections.abc import Sequence

from vtw_demo.embedded.scenes import COLOURS, PLACES, SHAPES
from vtw_demo.evaluation.normalisation import normalise

_OBJECT = re.compile(
    rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b(?: with an? \w on it)?,? (?:at|in) the "
    # The longest first: a regular expression takes the first that fits.
    rf"({'|'.join(sorted((place for row in PLACES for place in row), key=len, reverse=True))})\b"
)


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 for an answer that is one of the references, normalised as the VQA evaluations do; else 0."""
    said = normalise(answer)
    return float(bool(said) and any(said == normalise(reference) for reference in references))


def description_match(answer: str, references: Sequence[str]) -> float:
    """1 for a description of a scene that has every object with its colour and place, and no other; else 0."""
    said = _objects(answer)
    return float(bool(said) and any(said == _objects(reference) for reference in references))


def _objects(description: str) -> Counter[tuple[str, ...]]:
    """(colour, shape, place) of each object that a description tells of."""
    return Counter(_OBJECT.findall(description.lower()))
