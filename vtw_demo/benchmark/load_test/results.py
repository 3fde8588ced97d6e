"""What a load test found, as Markdown, and which of its bars it misses."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vtw_demo.benchmark.load_test.crowd import Load
from vtw_demo.benchmark.load_test.memory import Memory
from vtw_demo.formats import amount

LARGEST_GROWTH = 1.05
SHOWN_SENTENCES = 5


def load_table(load: Load) -> str:
    rows = [
        ("visitors at once", f"{load.clients}, {load.browsers} of them on the page, the others by the API"),
        ("for", f"{load.seconds:g} s, {load.distinct} different requests"),
        ("requests sent", f"{load.sent}"),
        ("answered", f"{load.answered}"),
        ("as alone", f"{load.answered - len(load.wrong)}"),
        ("told that the queue is full, tried again", f"{load.refused}"),
        ("lost", f"{len(load.lost)}"),
        *((f"answered within, {name}", _seconds(load.quantile(share))) for name, share in _QUANTILES),
    ]
    return _table(("what", "figure"), rows)


def memory_table(memory: Memory) -> str:
    heads = ("comparisons", "resident memory", "to the first", "threads", "open files", "pictures kept", "their bytes")
    first = memory.readings[0].resident_bytes
    rows = [
        (
            str(reading.comparisons),
            amount(reading.resident_bytes, "B"),
            f"{reading.resident_bytes / first:.3f}",
            str(reading.threads),
            str(reading.open_files),
            str(reading.uploads),
            amount(reading.upload_bytes, "B"),
        )
        for reading in memory.readings
    ]
    return _table(heads, rows)


def load_misses(load: Load) -> list[str]:
    """A sentence for each bar that was missed."""
    misses = [] if load.answered else ["No request was answered."]
    for what, sentences in (("answers that aren't those given alone", load.wrong), ("lost requests", load.lost)):
        if sentences:
            misses.append(f"{len(sentences)} {what}: {'; '.join(sentences[:SHOWN_SENTENCES])}.")
    return misses


def memory_misses(memory: Memory) -> list[str]:
    """A sentence where memory has grown by more than 5 %."""
    if memory.growth <= LARGEST_GROWTH:
        return []
    first, last = memory.readings[0], memory.readings[-1]
    slope = memory.bytes_a_comparison
    rising = "" if math.isnan(slope) else f", in the second half by {amount(max(slope, 0), 'B')} a comparison"
    return [
        f"Memory after {last.comparisons} comparisons is {100 * (memory.growth - 1):.1f} % above that after "
        f"{first.comparisons}; at most {100 * (LARGEST_GROWTH - 1):.0f} % are allowed{rising}."
    ]


_QUANTILES = (("half of them", 0.5), ("90 %", 0.9), ("99 %", 0.99), ("all", 1.0))


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} s"


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
