"""Whether a benchmark's ratios are still what they were: never its absolute times, which are the machine's."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from vtw_demo.errors import UserError

TOLERANCE = 0.05
"""Beyond the spread of both results' rounds, as a share of the earlier ratio."""


def moved(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """A sentence for each ratio whose median has left the range of the earlier rounds by more than `TOLERANCE`.

    Both are what `bench --json` writes. Raises ValueError if they are of different things.
    """
    if before["what"] != now["what"]:
        raise UserError(f"The earlier result is of {before['what']!r}, this one of {now['what']!r}: measure the same.")
    earlier, sentences = dict(_rounds(before)), []
    for name, rounds in _rounds(now):
        if name not in earlier:
            continue
        low, high, median = min(earlier[name]), max(earlier[name]), statistics.median(rounds)
        if not low * (1 - TOLERANCE) <= median <= high * (1 + TOLERANCE):
            was = statistics.median(earlier[name])
            sentences.append(f"{name}: {median:.3f}, before {was:.3f} ({low:.3f} to {high:.3f}).")
    return tuple(sentences)


def _rounds(result: Mapping[str, Any]) -> Iterator[tuple[str, list[float]]]:
    for answer in result["answers"]:
        for stage, ratios in zip(answer["median_ratio"], answer["ratios"], strict=True):
            if answer["layer"] is not None:
                yield f"{answer['name']}, {stage}", ratios
    for overhead in result["overheads"]:
        yield overhead["name"], overhead["rounds"]
