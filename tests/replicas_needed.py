"""`python -m tests.replicas_needed FILE`: from what answers took, how many replicas many visitors would need.

FILE is what `python -m tests.load --replicas N --json FILE` has written; a comparison takes what one took alone there.
Visitors ask, wait, read the answer for a while, and ask again; who has waited longest is next.
"""

import argparse
import heapq
import json
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.load import markdown_table

VISITORS = 1000
READING_SECONDS = (10, 30, 60, 120)
MEDIAN_WAIT_SECONDS = 5.0
ASKED_EACH = 20


def median_wait(replicas: int, service_seconds: Sequence[float], visitors: int, reading_seconds: float) -> float:
    """Seconds until a turn begins, of the later half of what visitors ask; they read for exponentially distributed
    times, and begin at any moment of the first one."""
    chance = random.Random(0)
    asked = [(chance.uniform(0, reading_seconds), visitor) for visitor in range(visitors)]
    heapq.heapify(asked)
    free, waits = [0.0] * replicas, []
    for _ in range(ASKED_EACH * visitors):
        now, visitor = heapq.heappop(asked)
        begins = max(now, free[0])
        ends = begins + chance.choice(service_seconds)
        heapq.heapreplace(free, ends)
        waits.append(begins - now)
        heapq.heappush(asked, (ends + chance.expovariate(1 / reading_seconds), visitor))
    return statistics.median(waits[len(waits) // 2 :])


def replicas_needed(service_seconds: Sequence[float], visitors: int, reading_seconds: float) -> int:
    """The fewest with which half of the turns begin within `MEDIAN_WAIT_SECONDS`."""
    few, enough = 0, 1
    while median_wait(enough, service_seconds, visitors, reading_seconds) > MEDIAN_WAIT_SECONDS:
        few, enough = enough, 2 * enough
    while enough - few > 1:
        middle = (few + enough) // 2
        is_enough = median_wait(middle, service_seconds, visitors, reading_seconds) <= MEDIAN_WAIT_SECONDS
        few, enough = (few, middle) if is_enough else (middle, enough)
    return enough


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.replicas_needed", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--replicas", default="1", help="whose answers are taken")
    parser.add_argument("--visitors", type=int, default=VISITORS)
    options = parser.parse_args(arguments)
    loads = json.loads(options.file.read_text())["replicas"][options.replicas]
    service_seconds = [seconds for load in loads for seconds in load["alone_seconds"]]
    rows = []
    for reading in READING_SECONDS:
        needed = replicas_needed(service_seconds, options.visitors, reading)
        wait = median_wait(needed, service_seconds, options.visitors, reading)
        rows.append((f"{reading} s", str(needed), f"{wait:.1f} s"))
    print(
        f"{options.visitors} visitors, comparisons of {statistics.median(service_seconds):.2f} s (median).", end="\n\n"
    )
    print(markdown_table(("an answer is read for", "replicas", "median wait"), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
