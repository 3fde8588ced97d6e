"""One query, two runs: with every layer seeing the picture, and with the visual tokens withdrawn at layer K."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vtw_demo.comparison.timed_generate import Run, run_timed
from vtw_demo.errors import UserError
from vtw_demo.measurements.token_probabilities import first_difference
from vtw_demo.models.loading import VisionLanguageModel
from vtw_demo.models.prompt import Prompt
from vtw_demo.models.video import Shown
from vtw_demo.withdrawal.withdraw import check_layer

RunName = Literal["full", "withdrawn"]
MAXIMUM_NEW_TOKENS = 1024


@dataclass(frozen=True)
class RunProgress:
    """A token of a run has come: the text so far."""

    run: RunName
    text: str
    new_tokens: int


@dataclass(frozen=True)
class RunFinished:
    """One of the two runs is complete."""

    run: RunName
    result: Run


@dataclass(frozen=True)
class Comparison:
    """Both runs of one query. `visual_tokens` and `text_tokens` are the prompt's."""

    model: str
    precision: str
    device: str
    question: str
    layer: int
    layers: int
    visual_tokens: int
    text_tokens: int
    full: Run
    withdrawn: Run

    @property
    def same_answer(self) -> bool:
        return self.full.tokens == self.withdrawn.tokens

    @property
    def first_difference(self) -> int | None:
        """The first token that differs, counted from 0; None where the answers are the same."""
        return first_difference(self.full.tokens, self.withdrawn.tokens)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {**asdict(self), "same_answer": self.same_answer, "first_difference": self.first_difference}


Event = RunProgress | RunFinished | Comparison


def compare(
    vlm: VisionLanguageModel,
    image: Shown,
    question: str,
    layer: int,
    max_new_tokens: int = 64,
    full: Run | None = None,
    stop: threading.Event | None = None,
) -> Iterator[Event]:
    """Answer `question` about `image` twice, decoding greedily, and yield events as they happen.

    For each run a `RunProgress` a token and a `RunFinished`; at the end the `Comparison`. `layer` is the
    withdrawal layer K, 1 <= K <= L. With `full`, an earlier full run of the same query, only the withdrawn run
    is made. Setting `stop` ends the run in hand within a token; so does closing the iterator. A stopped
    comparison ends with the runs that were made and no `Comparison`.

    Nothing else is done inside a timed run: the model waits while its reader handles an event, and that time
    is not counted.

    Raises ValueError for a bad picture, question, layer or number of tokens, before anything runs.
    """
    check_layer(layer, vlm.layers)
    return compare_prompt(vlm, vlm.prompt(image, question), layer, max_new_tokens, full, stop)


def compare_prompt(
    vlm: VisionLanguageModel,
    prompt: Prompt,
    layer: int,
    max_new_tokens: int = 64,
    full: Run | None = None,
    stop: threading.Event | None = None,
) -> Iterator[Event]:
    """`compare` for a prompt that has been made already."""
    check_layer(layer, vlm.layers)
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int):
        raise TypeError(f"The number of new tokens must be a whole number; this is {max_new_tokens!r}.")
    if not 1 <= max_new_tokens <= MAXIMUM_NEW_TOKENS:
        raise UserError(f"The number of new tokens must be from 1 to {MAXIMUM_NEW_TOKENS}; this is {max_new_tokens}.")
    needed, context = prompt.length + max_new_tokens, vlm.context
    if context is not None and needed > context:
        raise UserError(
            f"The question is too long: with the picture and the answer it takes {needed} tokens, and this model's "
            f"context holds {context}. Shorten the question or allow fewer new tokens."
        )
    return _events(vlm, prompt, layer, max_new_tokens, full, stop or threading.Event())


def _events(
    vlm: VisionLanguageModel,
    prompt: Prompt,
    layer: int,
    max_new_tokens: int,
    full: Run | None,
    stop: threading.Event,
) -> Iterator[Event]:
    if full is None:
        full = yield from _named_run(vlm, prompt, "full", vlm.layers, max_new_tokens, stop)
    if full is None:
        return
    withdrawn = yield from _named_run(vlm, prompt, "withdrawn", layer, max_new_tokens, stop)
    if withdrawn is None:
        return
    yield Comparison(
        model=vlm.name,
        precision=vlm.precision,
        device=str(vlm.device),
        question=prompt.question,
        layer=layer,
        layers=vlm.layers,
        visual_tokens=prompt.visual_tokens,
        text_tokens=prompt.length - prompt.visual_tokens,
        full=full,
        withdrawn=withdrawn,
    )


def _named_run(
    vlm: VisionLanguageModel,
    prompt: Prompt,
    name: RunName,
    layer: int,
    max_new_tokens: int,
    stop: threading.Event,
) -> Generator[Event, None, Run | None]:
    steps = run_timed(vlm, prompt, layer, max_new_tokens, stop)
    try:
        while True:
            try:
                tokens = next(steps)
            except StopIteration as end:
                result: Run | None = end.value
                break
            yield RunProgress(name, vlm.decode(tokens), len(tokens))
    finally:
        steps.close()
    if result is not None:
        yield RunFinished(name, result)
    return result
