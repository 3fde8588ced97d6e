"""Whether the server's memory grows with the comparisons that it has made."""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from vtw_demo.benchmark.load_test.crowd import compare
from vtw_demo.benchmark.load_test.protocol import Page, Visitor
from vtw_demo.benchmark.load_test.requests import random_request
from vtw_demo.benchmark.load_test.server import Server
from vtw_demo.errors import UserError

EVERY = 50
ANSWER_TOKENS = 2
AT_ONCE = 4


@dataclass(frozen=True)
class Reading:
    """After so many comparisons: the server's resident memory, its threads, its open files and sockets, and the
    visitors' pictures that it keeps."""

    comparisons: int
    resident_bytes: int
    threads: int
    open_files: int
    uploads: int
    upload_bytes: int


@dataclass(frozen=True)
class Memory:
    """Readings after 50 comparisons and on. Raises ValueError without a second one."""

    readings: tuple[Reading, ...]

    def __post_init__(self) -> None:
        if len(self.readings) < 2:
            raise ValueError(f"Growth takes two readings; these are {self.readings}.")

    @property
    def growth(self) -> float:
        """The last reading's memory beside the first's: 1.05 is 5 % more."""
        return self.readings[-1].resident_bytes / self.readings[0].resident_bytes

    @property
    def bytes_a_comparison(self) -> float:
        """How steeply memory rises over the second half, where the allocator's own reserves are full: a leak goes on
        rising, fragmentation levels off. NaN with fewer than two readings there."""
        half = self.readings[len(self.readings) // 2 :]
        if len(half) < 2:
            return math.nan
        made, held = [r.comparisons for r in half], [r.resident_bytes for r in half]
        return statistics.linear_regression(made, held).slope


def check_comparisons(comparisons: int) -> None:
    """Raises ValueError for 50 or fewer."""
    if comparisons <= EVERY:
        raise UserError(f"Growth is measured from {EVERY} comparisons on: ask for more; this is {comparisons}.")


async def measure_memory(
    http: httpx.AsyncClient, page: Page, server: Server, clients: int, comparisons: int, layers: int
) -> Memory:
    """Read after 50 comparisons, and after each 50 more up to `comparisons`: each with a picture of its own, its
    answers cut after 2 tokens, by so many visitors in turn, four at once.

    Gradio keeps a copy of the page for each visitor: more than 50 would be measured, too. Raises ValueError for 50
    comparisons or fewer, QueueFullError and FailedError where one gets no answer.
    """
    check_comparisons(comparisons)
    visitors = [Visitor(http, page) for _ in range(min(clients, EVERY))]
    readings = []
    made = 0
    while made < comparisons:
        upto = min(made + EVERY, comparisons)
        seeds = iter(range(made, upto))

        async def work(seeds: Iterator[int] = seeds) -> None:
            for seed in seeds:
                await compare(visitors[seed % len(visitors)], random_request(seed, layers, ANSWER_TOKENS))

        await asyncio.gather(*(work() for _ in range(min(AT_ONCE, len(visitors)))))
        made = upto
        readings.append(_read(server, made))
    return Memory(tuple(readings))


def _read(server: Server, comparisons: int) -> Reading:
    uploads, upload_bytes = server.uploaded()
    return Reading(
        comparisons=comparisons,
        resident_bytes=server.resident_bytes(),
        threads=server.process.num_threads(),
        open_files=server.process.num_fds(),
        uploads=uploads,
        upload_bytes=upload_bytes,
    )
