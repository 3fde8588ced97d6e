"""Where the model runs: on this process' model thread; on ZeroGPU in a process beside it, within a lease of a GPU.

The worker is forked from this process, so that it has the models that were placed before the first lease, and is used
again. Arguments, events and results are pickled. Off ZeroGPU nothing is leased, and its package `spaces` isn't needed.
A Space says in environment variables where it listens and what it may use.
"""

import itertools
import logging
import math
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any, Concatenate, ParamSpec, TypeVar

import gradio as gr
import torch

from vtw_demo.comparison.analysis import MEASUREMENTS, Analysis, Part, measure
from vtw_demo.comparison.compare import Comparison
from vtw_demo.errors import UserError
from vtw_demo.models.devices import on_model_thread, on_zero_gpu
from vtw_demo.models.prompt import Prompt
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.server.errors import OUT_OF_MEMORY, REFUSED, fault_of, free_what_failed, trace_of
from vtw_demo.server.listening import EVERYWHERE, HERE

logger = logging.getLogger(__name__)

# Two answers of 1024 tokens from a model of 7 billion parameters fit.
LONGEST_LEASE = 120
# Generous guesses, not measured: to start CUDA, to bring weights from the disk, and for each layer of a pass.
START_SECONDS = 5.0
BYTES_PER_SECOND = 2e9
SECONDS_PER_PREFILL_LAYER = 0.02
SECONDS_PER_TOKEN_LAYER = 0.0015
# How soon a worker sees a stop.
STOP_SECONDS = 0.05
# What stands here for what was raised there, by the kind of fault.
RAISED = {REFUSED: UserError, OUT_OF_MEMORY: MemoryError}

Arguments = ParamSpec("Arguments")
Event = TypeVar("Event")

# Models that leases may use, with their weights' bytes, which can't be asked once they are packed away. The same in
# this process and in all that are forked from it.
_placed: list[tuple[VisionLanguageModel, int]] = []


def place(vlm: VisionLanguageModel) -> None:
    """Let leases use a model; call this before the first one. Off ZeroGPU this does nothing."""
    if on_zero_gpu():
        _placed.append((vlm, vlm.memory_bytes))


def leased(
    function: Callable[Concatenate[VisionLanguageModel, Arguments], Iterator[Event]],
    vlm: VisionLanguageModel,
    prefills: int,
    new_tokens: int = 0,
) -> Callable[Arguments, Iterator[Event]]:
    """`function` of `vlm`; on ZeroGPU, within a lease for so many passes over a prompt and tokens decoded one by one.

    `function` gets prompts with their inputs on the device, and sees a `stop` that is given by name at once. The lease
    begins when the first event is asked for, in the context of the visitor's request, whose quota it is on; closing the
    iterator ends it within an event. Raises UserError for what is refused, MemoryError and RuntimeError for the rest.
    """
    if not on_zero_gpu():
        return partial(function, vlm)
    indices = [index for index, (placed, _) in enumerate(_placed) if placed is vlm]
    if not indices:
        raise UserError(f"On ZeroGPU a Space runs the model that it was started with, and {vlm.name!r} is another one.")
    index = indices[0]
    seconds = _lease_seconds(vlm.layers, _placed[index][1], prefills, new_tokens)

    def run(*arguments: Arguments.args, **options: Arguments.kwargs) -> Iterator[Event]:
        stop, shared = options.get("stop"), _SharedStop(next(_places))
        sent = options | {"stop": shared} if "stop" in options else options
        # What can't be sent must be known before a GPU is asked for.
        ForkingPickler.dumps((function, arguments, sent))
        # The stop is set before the lease is closed: its work ends within a token, not at its next event.
        with closing(_lease(seconds, index, function, arguments, sent)) as events, shared.following(stop):
            try:
                for event in events:
                    if isinstance(event, _Raised):
                        raise event.kind(event.sentence)
                    yield event
            except gr.Error as error:  # no quota, no GPU, a worker that was ended
                raise UserError(f"{error.title}: {error.message!s}") from error

    return run


def measured(analysis: Analysis, part: Part) -> None:
    """Measure a part of an analysis, which keeps it."""
    prefills, asked = MEASUREMENTS[part.name].prefills, (analysis.prompt, analysis.comparison, part)
    if on_zero_gpu() and prefills:
        (result,) = leased(_measure, analysis.vlm, prefills)(*asked)
    else:
        result = on_model_thread(measure, analysis.vlm, *asked)
    analysis.keep(part, result)


def _measure(vlm: VisionLanguageModel, prompt: Prompt, comparison: Comparison, part: Part) -> Iterator[Any]:
    yield measure(vlm, prompt, comparison, part)


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


@dataclass(frozen=True)
class _Raised:
    """What a function raised, of a type that can be pickled whatever it holds."""

    kind: type[Exception]
    sentence: str


def _in_worker(
    seconds: int, index: int, function: Callable[..., Iterator[Any]], arguments: tuple[Any, ...], options: dict
) -> Iterator[Any]:
    try:
        vlm, _ = _placed[index]
        here = [value.to(vlm.device) if isinstance(value, Prompt) else value for value in arguments]
        yield from function(vlm, *here, **options)
    except Exception as error:
        fault, name = fault_of(error), type(error).__name__
        if fault.kind != REFUSED:
            logger.error("what was leased a GPU failed: %s", trace_of(error, with_message=False))
        free_what_failed(error)
        yield _Raised(RAISED.get(fault.kind, RuntimeError), fault.sentence if fault.kind == REFUSED else name)


if on_zero_gpu():
    import spaces

    # One function for all that needs the device: each has workers of its own, with weights of their own. `spaces` must
    # see it before the page is served, and be imported before anything asks for CUDA.
    _lease = spaces.GPU(_in_worker, duration=lambda seconds, *_: seconds)


def on_space() -> bool:
    return bool(os.environ.get("SPACE_ID"))


def default_host() -> str:
    """Where to listen. A Space's visitors come from outside its container."""
    return os.environ.get("GRADIO_SERVER_NAME") or (EVERYWHERE if on_space() else HERE)


def use_own_cores() -> None:
    """Let torch compute in as many threads as the Space has processors, not its machine; nothing elsewhere."""
    cores = os.environ.get("CPU_CORES", "")
    if on_space() and cores.isdecimal() and int(cores):
        torch.set_num_threads(min(int(cores), torch.get_num_threads()))
