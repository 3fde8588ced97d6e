"""Interleaved rounds: what is compared runs in turn, and ratios are taken within a round."""

from __future__ import annotations

import ctypes
import gc
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from vtw_demo.errors import UserError

Name = TypeVar("Name")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Ratio:
    """What something took in units of something else, or in seconds, in each round; `bar` is the most that it may take,
    if there is one. Raises ValueError without a round, and for ratios that aren't positive."""

    name: str
    rounds: tuple[float, ...]
    bar: float | None = None

    def __post_init__(self) -> None:
        if not self.rounds or min(self.rounds) <= 0:
            raise ValueError(f"{self.name} needs a positive ratio a round; these are {self.rounds}.")

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {**asdict(self), "median": self.median}


def in_turn(runs: Mapping[Name, Callable[[], Result]], rounds: int) -> Iterator[tuple[Name, Result]]:
    """Call each of `runs` once a round, in an order that is turned around from round to round, after one round to warm
    up; yield what each call gives, with its name.

    Raises ValueError for no round.
    """
    if rounds < 1:
        raise UserError(f"At least 1 round is needed; {rounds} were asked for.")
    order = list(runs)
    for number in range(rounds + 1):
        for name in order:
            result = runs[name]()
            if number > 0:
                yield name, result
        order.reverse()


def timed(run: Callable[[], Any], device: torch.device) -> Callable[[], float]:
    """The same, giving the seconds that it takes, the device synchronised before and after."""

    def call() -> float:
        synchronise(device)
        start = time.perf_counter()
        run()
        synchronise(device)
        return time.perf_counter() - start

    return call


def interleaved(runs: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds that each of `runs` took in each round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for name, seconds in in_turn({name: timed(run, device) for name, run in runs.items()}, rounds):
        times[name].append(seconds)
    return times


def ratios(times: list[float], units: list[float]) -> tuple[float, ...]:
    """Round by round."""
    return tuple(taken / unit for taken, unit in zip(times, units, strict=True))


def synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[int]]:
    """A list that holds one number at the end: how many bytes more were held inside than before, at most.

    On a CPU that is the process's resident memory, sampled every millisecond. Empty where it can't be told.
    """
    peak: list[int] = []
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.append(torch.cuda.max_memory_allocated(device) - before)
        return
    if not Path("/proc/self/statm").exists():
        yield peak
        return
    _give_back_what_is_free()
    before, highest, done = _resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            highest[0] = max(highest[0], _resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
    peak.append(max(highest[0], _resident()) - before)


def _give_back_what_is_free() -> None:
    """What the allocator keeps for later would hide what is held next."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096
