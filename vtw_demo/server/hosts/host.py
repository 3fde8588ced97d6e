"""What the engine asks of a place where the model runs, and what those outside this process share."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from vtw_demo.errors import UserError
from vtw_demo.models.loading import ModelChoice, OnProgress
from vtw_demo.models.prompt import Prompt
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.server.errors import OUT_OF_MEMORY, REFUSED, fault_of, free_what_failed, trace_of

logger = logging.getLogger(__name__)

Arguments = ParamSpec("Arguments")
Event = TypeVar("Event")
# What stands here for what was raised there, by the kind of fault.
RAISED = {REFUSED: UserError, OUT_OF_MEMORY: MemoryError}


class LostError(UserError):
    """What ran a function is gone in the middle of it: another may run it again."""


class Host(Protocol):
    at_once: int  # how many runs go on beside each other

    def load(self, choice: ModelChoice, report: OnProgress) -> VisionLanguageModel:
        """The model, ready to run here: its weights need not be in this process. Raises what `load_choice` does."""
        ...

    def place(self, vlm: VisionLanguageModel) -> None:
        """Let functions use a loaded model."""
        ...

    def release(self, vlm: VisionLanguageModel) -> None:
        """Give the memory of a loaded model back: it can't be used any more."""
        ...

    def run(
        self,
        function: Callable[Concatenate[VisionLanguageModel, Arguments], Iterator[Event]],
        vlm: VisionLanguageModel,
        prefills: int,
        new_tokens: int = 0,
    ) -> Callable[Arguments, Iterator[Event]]:
        """`function` of `vlm`, which takes so many passes over a prompt and decodes so many tokens one by one.

        It begins when its first event is asked for. It gets prompts with their inputs on its device, and sees a `stop`
        that is given by name at once; closing its iterator ends it within a token. Raises UserError for what is
        refused, `LostError` where what ran it is gone, MemoryError and RuntimeError for the rest.
        """
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Raised:
    """What a function raised, of a type that can be pickled whatever it holds."""

    kind: type[Exception]
    sentence: str


def events_of(
    function: Callable[..., Iterator[Any]], vlm: VisionLanguageModel, arguments: tuple, options: dict
) -> Iterator[Any]:
    """The events of a function in a process that isn't the page's; at the end what it `Raised`, if anything."""
    try:
        here = [value.to(vlm.device) if isinstance(value, Prompt) else value for value in arguments]
        yield from function(vlm, *here, **options)
    except Exception as error:
        fault, name = fault_of(error), type(error).__name__
        if fault.kind != REFUSED:
            logger.error("what ran outside the page failed: %s", trace_of(error, with_message=False))
        free_what_failed(error)
        yield Raised(RAISED.get(fault.kind, RuntimeError), fault.sentence if fault.kind == REFUSED else name)


def raised_again(events: Iterator[Any]) -> Iterator[Any]:
    """Those events here: what was `Raised` is raised."""
    for event in events:
        if isinstance(event, Raised):
            raise event.kind(event.sentence)
        yield event
