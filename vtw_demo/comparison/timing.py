"""The one clock of every timing, and what is made of its times: rounds in which runs take turns, spreads and ratios."""

from __future__ import annotations

import ctypes
import gc
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import psutil
import torch
from tqdm import tqdm

from vtw_demo.errors import UserError
from vtw_demo.formats import PlainData

Name = TypeVar("Name")
Result = TypeVar("Result")


class Clock:
    """Seconds; the device is waited for at each reading, and pauses are cut out."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._paused = 0.0

    def now(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter() - self._paused

    @contextmanager
    def paused(self) -> Iterator[None]:
        since = time.perf_counter()
        yield
        self._paused += time.perf_counter() - since


@dataclass(frozen=True)
class Spread:
    lowest: float
    lower_quartile: float
    median: float
    upper_quartile: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one number or more; quartiles lie between the numbers next to them, in proportion."""
        return cls(*np.percentile(values, [0, 25, 50, 75, 100]).tolist())


@dataclass(frozen=True)
class Ratio(PlainData):
    """What something took in units of something else, or in seconds, in each round."""

    name: str
    rounds: tuple[float, ...]
    bar: float | None = None  # the most that it may take, if there is one

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


def in_turn(
    runs: Mapping[Name, Callable[[], Result]], rounds: int, *, warm_up: bool = True, shown_as: str | None = None
) -> Iterator[tuple[Name, Result]]:
    """Call each of `runs` once a round, in an order that is turned around from round to round; yield what each gives,
    with its name, but for a round before them, to warm up. `shown_as` names them in a terminal, which shows how far
    they are."""
    if rounds < 1:
        raise UserError(f"At least 1 round is needed; {rounds} were asked for.")
    order, calls = list(runs), (rounds + warm_up) * len(runs)
    is_hidden = None if shown_as else True  # None hides it where there is no terminal
    with tqdm(total=calls, desc=shown_as, unit="run", disable=is_hidden, leave=False) as bar:
        for number in range(rounds + warm_up):
            for name in order:
                result = runs[name]()
                bar.update()
                if number >= warm_up:
                    yield name, result
            order.reverse()


def interleaved(
    runs: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device, shown_as: str | None = None
) -> dict[str, list[float]]:
    """Seconds that each of `runs` took in each round."""
    clock = Clock(device)

    def timed(run: Callable[[], Any]) -> float:
        start = clock.now()
        run()
        return clock.now() - start

    times: dict[str, list[float]] = {name: [] for name in runs}
    timings = {name: partial(timed, run) for name, run in runs.items()}
    for name, seconds in in_turn(timings, rounds, shown_as=shown_as):
        times[name].append(seconds)
    return times


def ratios(times: Sequence[float], units: Sequence[float]) -> tuple[float, ...]:
    """Round by round."""
    return tuple(taken / unit for taken, unit in zip(times, units, strict=True))


def peak_memory(run: Callable[[], Any], device: torch.device) -> int:
    """How many bytes more were held during `run` than before, at most: of a GPU torch's own count; else the process's
    resident memory, sampled every millisecond."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    # What the allocator keeps for later would hide what is held next.
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    process = psutil.Process()
    before, highest, done = process.memory_info().rss, [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            highest[0] = max(highest[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return max(highest[0], process.memory_info().rss) - before
