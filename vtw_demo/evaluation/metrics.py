"""How right answers are, as the VQA evaluations compare them, and means over a data set with their 95 % intervals.

Normalised as the VQA v2 evaluation does (visualqa.org/evaluation): lower case, digits for number words, no articles,
contractions with their apostrophe, no punctuation of sentences; signs such as %, $, colons and apostrophes stay.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vtw_demo.embedded.scenes import COLOURS, PLACES, SHAPES

CONFIDENCE = 0.95
RESAMPLES = 2000
NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
           "seven": "7", "eight": "8", "nine": "9", "ten": "10"}  # fmt: skip
ARTICLES = ("a", "an", "the")
# None that is another word without its apostrophe: its, were, well, ill, shed and the like stay as they are.
WITH_APOSTROPHE = Path(__file__).with_name("contractions.txt").read_text(encoding="utf-8").split()
CONTRACTIONS = {written.replace("'", ""): written for written in WITH_APOSTROPHE}

_DIGIT_COMMA = re.compile(r"(?<=\d),(?=\d)")
_PERIOD = re.compile(r"\.(?!\d)")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_OBJECT = re.compile(
    rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b(?: with an? \w on it)?,? (?:at|in) the "
    # The longest first: a regular expression takes the first that fits.
    rf"({'|'.join(sorted((place for row in PLACES for place in row), key=len, reverse=True))})\b"
)


@dataclass(frozen=True)
class Estimate:
    """A mean, and the interval that holds it in 95 % of the resamples."""

    mean: float
    low: float
    high: float


def normalise(answer: str) -> str:
    """The answer as it is compared with others; "" where nothing but punctuation is left. Unlike in the VQA evaluation,
    an answer that is nothing but an article stays: "A" may be a letter."""
    text = " ".join(answer.lower().replace("’", "'").split())
    bare = text
    for mark in _PUNCTUATION:
        # Between words it parts them; at a word's end, and in numbers, it is dropped.
        is_dropped = f"{mark} " in text or f" {mark}" in text or _DIGIT_COMMA.search(text)
        bare = bare.replace(mark, "" if is_dropped else " ")
    words = [NUMBERS.get(word, word) for word in _PERIOD.sub("", bare).split()]
    words = [word for word in words if word not in ARTICLES] or words
    return " ".join(CONTRACTIONS.get(word, word) for word in words)


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 for an answer that is one of the references, normalised; else 0."""
    said = normalise(answer)
    return float(bool(said) and any(said == normalise(reference) for reference in references))


def description_match(answer: str, references: Sequence[str]) -> float:
    """1 for a description of a scene that has every object with its colour and place, and no other; else 0."""
    said = _objects(answer)
    return float(bool(said) and any(said == _objects(reference) for reference in references))


def _objects(description: str) -> Counter[tuple[str, ...]]:
    """(colour, shape, place) of each."""
    return Counter(_OBJECT.findall(description.lower()))


def estimates(values: Sequence[Sequence[float]], groups: Sequence[str], seed: int = 0) -> tuple[Estimate, ...]:
    """The mean of each column of `values`, (samples, columns), with its interval, from the bootstrap.

    Pictures, the `groups`, are drawn again, each with all its questions: those about one picture aren't independent.
    All columns are drawn alike, so that the difference of two is as steady as it is on the samples.
    """
    table = np.asarray(values, dtype=np.float64)
    assert len(table) == len(groups) > 0
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.zeros((len(names), table.shape[1]))
    np.add.at(sums, group, table)
    counts = np.bincount(group)
    generator = np.random.default_rng(seed)
    means = np.empty((RESAMPLES, table.shape[1]))
    for resample in range(RESAMPLES):
        times = np.bincount(generator.integers(len(names), size=len(names)), minlength=len(names))
        means[resample] = times @ sums / (times @ counts)
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [outside, 1 - outside], axis=0)
    return tuple(Estimate(*figures) for figures in np.stack([table.mean(0), low, high], axis=1).tolist())
