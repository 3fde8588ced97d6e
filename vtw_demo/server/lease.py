"""ZeroGPU lends a GPU to a process beside the page's own: what needs the device runs there, within a lease.

Off ZeroGPU nothing is leased, and its package `spaces` isn't needed: `leased` gives the function itself. There the
worker is forked from this process, so that it has the model without being sent it, and is used again. Arguments, events
and results are pickled: a model is sent as the name of one that was placed before the first lease, and a
`threading.Event` as a byte of shared memory.
"""

from __future__ import annotations

import itertools
import logging
import math
import mmap
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import wraps
from multiprocessing.reduction import ForkingPickler
from typing import Any, ParamSpec, TypeVar

import gradio as gr

from vtw_demo.comparison.analysis import MEASUREMENTS, Analysis, Part, measure
from vtw_demo.comparison.compare import Comparison
from vtw_demo.errors import UserError
from vtw_demo.models.devices import on_model_thread, on_zero_gpu
from vtw_demo.models.prompt import Prompt
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.server.errors import OUT_OF_MEMORY, REFUSED, fault_of, free_what_failed, trace_of

logger = logging.getLogger(__name__)

# Two answers of 1024 tokens from a model of 7 billion parameters fit.
LONGEST_LEASE = 120
# Generous guesses, not measured: to start CUDA, to bring weights from the disk, and for each layer of a pass.
START_SECONDS = 5.0
BYTES_PER_SECOND = 2e9
SECONDS_PER_PREFILL_LAYER = 0.02
SECONDS_PER_TOKEN_LAYER = 0.0015
# What stands here for what was raised there, by the kind of fault.
RAISED = {REFUSED: UserError, OUT_OF_MEMORY: MemoryError}

Arguments = ParamSpec("Arguments")
Event = TypeVar("Event")
Result = TypeVar("Result")


def place(vlm: VisionLanguageModel) -> None:
    """Name a model that leases will use; call this before the first lease. Off ZeroGPU this does nothing."""
    if on_zero_gpu():
        _PLACED.append(_Placed(vlm, vlm.memory_bytes))


def lease_seconds(vlm: VisionLanguageModel, prefills: int, new_tokens: int) -> int:
    """How long a GPU is needed at most for so many passes over a prompt and so many tokens decoded one by one.

    Raises ValueError, in a sentence for people, where that is longer than a lease can be.
    """
    starting = START_SECONDS + _PLACED[_index(vlm)].memory_bytes / BYTES_PER_SECOND
    working = vlm.layers * (prefills * SECONDS_PER_PREFILL_LAYER + new_tokens * SECONDS_PER_TOKEN_LAYER)
    seconds = math.ceil(starting + working)
    if seconds > LONGEST_LEASE:
        raise UserError(
            f"This could take {seconds} s, and a GPU is lent for {LONGEST_LEASE} s at most: ask for less at once."
        )
    return seconds


def leased(
    function: Callable[Arguments, Iterator[Event]], vlm: VisionLanguageModel, prefills: int, new_tokens: int = 0
) -> Callable[Arguments, Iterator[Event]]:
    """`function`; on ZeroGPU, one that does the same within a lease for so many passes of `vlm` over a prompt and so
    many tokens decoded one by one.

    `function` must be pickled by its name, or be a method of what can be pickled. The lease begins when the first
    event is asked for, in the context of the visitor's request, whose quota it is on. Closing the iterator ends it
    within an event; setting a `threading.Event` among the arguments is seen there at once. What was refused there is
    raised here as ValueError, a lack of memory as MemoryError, others as RuntimeError; where no GPU is lent, a
    ValueError says why, as for what is longer than a lease can be.
    """
    if not on_zero_gpu():
        return function
    seconds = lease_seconds(vlm, prefills, new_tokens)

    @wraps(function)
    def run(*arguments: Arguments.args, **options: Arguments.kwargs) -> Iterator[Event]:
        # Stops are set before the lease is closed: its work ends within a token, not at its next event.
        with ExitStack() as last, ExitStack() as first:
            sent = [first.enter_context(_shared(value)) for value in arguments]
            named = {name: first.enter_context(_shared(value)) for name, value in options.items()}
            # What can't be sent must be known before a GPU is asked for.
            ForkingPickler.dumps((function, sent, named))
            events = last.enter_context(closing(_lease(seconds, function, sent, named)))
            try:
                for event in events:
                    if isinstance(event, _Raised):
                        raise event.kind(event.sentence)
                    yield event
            except gr.Error as error:  # no quota, no GPU, a worker that was ended
                raise UserError(f"{error.title}: {error.message!s}") from error

    return run


def measured(analysis: Analysis, part: Part) -> None:
    """Measure a part of an analysis, which keeps it, on the model's thread; on ZeroGPU, within a lease."""
    asked = analysis.vlm, analysis.prompt, analysis.comparison, part
    prefills = MEASUREMENTS[part.name].prefills
    if not on_zero_gpu() or not prefills:
        analysis.keep(part, on_model_thread(measure, *asked))
        return
    (result,) = leased(_measure, analysis.vlm, prefills)(*asked)
    analysis.keep(part, result)


def _measure(vlm: VisionLanguageModel, prompt: Prompt, comparison: Comparison, part: Part) -> Iterator[Any]:
    yield measure(vlm, prompt, comparison, part)


@dataclass(frozen=True)
class _Placed:
    """A model that leases may use, and its weights' bytes, which can't be asked once they are packed away."""

    vlm: VisionLanguageModel
    memory_bytes: int


# The same in this process and in all that are forked from it.
_PLACED: list[_Placed] = []


def _index(vlm: VisionLanguageModel) -> int:
    for index, placed in enumerate(_PLACED):
        if placed.vlm is vlm:
            return index
    raise UserError(f"On ZeroGPU a Space runs the model that it was started with, and {vlm.name!r} is another one.")


def _placed(index: int) -> VisionLanguageModel:
    return _PLACED[index].vlm


def _by_name(vlm: VisionLanguageModel) -> tuple[Callable[[int], VisionLanguageModel], tuple[int]]:
    return _placed, (_index(vlm),)


ForkingPickler.register(VisionLanguageModel, _by_name)

_STOPS = mmap.mmap(-1, mmap.PAGESIZE)
_PLACES = itertools.cycle(range(mmap.PAGESIZE))


@dataclass(frozen=True)
class _SharedStop:
    """A byte of memory that this process and its workers share."""

    place: int

    def is_set(self) -> bool:
        return _STOPS[self.place] == 1

    def write(self, is_set: bool) -> None:
        _STOPS[self.place] = is_set


@contextmanager
def _shared(value: Any) -> Iterator[Any]:
    """What stands for an argument in the worker: for a `threading.Event` one that follows it, and is set at the end."""
    if not isinstance(value, threading.Event):
        yield value
        return
    shared, over = _SharedStop(next(_PLACES)), threading.Event()
    shared.write(False)

    def follow() -> None:
        # Asked, not waited for: a lost connection is seen only by asking.
        while not over.wait(0.05):
            if value.is_set():
                shared.write(True)
                return

    threading.Thread(target=follow, name="stop of a lease", daemon=True).start()
    try:
        yield shared
    finally:
        over.set()
        shared.write(True)


@dataclass(frozen=True)
class _Raised:
    """What a function raised, of a type that can be pickled whatever it holds."""

    kind: type[Exception]
    sentence: str


def _on_device(value: Any) -> Any:
    """A prompt comes without the device's memory."""
    return value.to("cuda") if isinstance(value, Prompt) else value


def _work(
    seconds: int, function: Callable[..., Iterator[Any]], arguments: list[Any], options: dict[str, Any]
) -> Iterator[Any]:
    """In the worker: the events of `function`."""
    try:
        yield from function(*map(_on_device, arguments), **options)
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
    _lease = spaces.GPU(_work, duration=lambda seconds, *_: seconds)
