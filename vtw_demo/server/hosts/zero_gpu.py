"""The model runs on ZeroGPU, in a process beside this one, within leases of a GPU.

The worker is forked from this process, so that it has the models that were placed before the first lease, and is used
again. Arguments, events and results are pickled. Off ZeroGPU its package `spaces` isn't needed.
"""

import itertools
import math
import mmap
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any, Concatenate

import gradio as gr

from vtw_demo.errors import UserError
from vtw_demo.models.devices import on_zero_gpu
from vtw_demo.models.loading import ModelChoice, OnProgress, load_choice
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.server.hosts.host import Arguments, Event, events_of, raised_again

# Two answers of 1024 tokens from a model of 7 billion parameters fit.
LONGEST_LEASE = 120
# Generous guesses, not measured: to start CUDA, to bring weights from the disk, and for each layer of a pass.
START_SECONDS = 5.0
BYTES_PER_SECOND = 2e9
SECONDS_PER_PREFILL_LAYER = 0.02
SECONDS_PER_TOKEN_LAYER = 0.0015
# How soon a worker sees a stop.
STOP_SECONDS = 0.05

# Models that leases may use, with their weights' bytes, which can't be asked once they are packed away. The same in
# this process and in all that are forked from it.
_placed: list[tuple[VisionLanguageModel, int]] = []


class ZeroGPU:
    at_once = 1

    def load(self, choice: ModelChoice, report: OnProgress) -> VisionLanguageModel:
        return load_choice(choice, report)

    def place(self, vlm: VisionLanguageModel) -> None:
        """Before the first lease."""
        _placed.append((vlm, vlm.memory_bytes))

    def release(self, vlm: VisionLanguageModel) -> None:
        raise AssertionError("on ZeroGPU no model takes another one's place")

    def run(
        self,
        function: Callable[Concatenate[VisionLanguageModel, Arguments], Iterator[Event]],
        vlm: VisionLanguageModel,
        prefills: int,
        new_tokens: int = 0,
    ) -> Callable[Arguments, Iterator[Event]]:
        """Within a lease, in the context of the visitor's request, whose quota it is on; here what takes no pass."""
        if not prefills:
            return partial(function, vlm)
        indices = [index for index, (placed, _) in enumerate(_placed) if placed.model is vlm.model]
        if not indices:
            raise UserError(
                f"On ZeroGPU a Space runs the model that it was started with, and {vlm.name!r} is another one."
            )
        index = indices[0]
        seconds = _lease_seconds(vlm.layers, _placed[index][1], prefills, new_tokens)

        def run(*arguments: Arguments.args, **options: Arguments.kwargs) -> Iterator[Event]:
            stop, shared = options.get("stop"), _SharedStop(next(_places))
            sent = options | {"stop": shared} if "stop" in options else options
            # What can't be sent must be known before a GPU is asked for.
            ForkingPickler.dumps((function, arguments, sent))
            # The stop is set before the lease is closed: its work ends within a token, not at its next event.
            lease = _lease(seconds, (index, vlm.detail), function, arguments, sent)
            with closing(lease) as events, shared.following(stop):
                try:
                    yield from raised_again(events)
                except gr.Error as error:  # no quota, no GPU, a worker that was ended
                    raise UserError(f"{error.title}: {error.message!s}") from error

        return run

    def close(self) -> None:
        pass


def _lease_seconds(layers: int, memory_bytes: int, prefills: int, new_tokens: int) -> int:
    working = layers * (prefills * SECONDS_PER_PREFILL_LAYER + new_tokens * SECONDS_PER_TOKEN_LAYER)
    seconds = math.ceil(START_SECONDS + memory_bytes / BYTES_PER_SECOND + working)
    if seconds > LONGEST_LEASE:
        raise UserError(
            f"This could take {seconds} s, and a GPU is lent for {LONGEST_LEASE} s at most: ask for less at once."
        )
    return seconds


_stops = mmap.mmap(-1, mmap.PAGESIZE)
_places = itertools.cycle(range(mmap.PAGESIZE))


@dataclass(frozen=True)
class _SharedStop:
    """What stands for a stop in the worker: a byte of memory that this process shares with it."""

    place: int

    def is_set(self) -> bool:
        return _stops[self.place] == 1

    @contextmanager
    def following(self, stop: Any) -> Iterator[None]:
        """It is set as soon as `stop` is, if there is one, and at the end."""
        _stops[self.place], over = False, threading.Event()

        def follow() -> None:
            # Asked, not waited for: a lost connection is seen only by asking.
            while not over.wait(STOP_SECONDS):
                if stop.is_set():
                    _stops[self.place] = True
                    return

        if stop is not None:
            threading.Thread(target=follow, name="stop of a lease", daemon=True).start()
        try:
            yield
        finally:
            over.set()
            _stops[self.place] = True


def _in_worker(
    seconds: int, which: tuple[int, str], function: Callable[..., Iterator[Any]], arguments: tuple, options: dict
) -> Iterator[Any]:
    index, detail = which
    yield from events_of(function, _placed[index][0].at_detail(detail), arguments, options)


if on_zero_gpu():
    import spaces

    # One function for all that needs the device: each has workers of its own, with weights of their own. `spaces` must
    # see it before the page is served, and be imported before anything asks for CUDA.
    _lease = spaces.GPU(_in_worker, duration=lambda seconds, *_: seconds)
