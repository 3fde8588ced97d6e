"""One query answered anew at each withdrawal layer of a range."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vtw_demo.comparison.compare import RunFinished, RunProgress, compare_prompt
from vtw_demo.comparison.timed_generate import Run
from vtw_demo.models.loading import VisionLanguageModel
from vtw_demo.models.prompt import Prompt


@dataclass(frozen=True)
class LayerAnswer:
    """The run with the visual tokens withdrawn at `layer`."""

    layer: int
    run: Run


def answer_at_layers(
    vlm: VisionLanguageModel,
    prompt: Prompt,
    layers: Sequence[int],
    full: Run,
    max_new_tokens: int = 64,
    stop: threading.Event | None = None,
) -> Iterator[LayerAnswer]:
    """Answer the prompt with withdrawal at each of `layers`, timed as `compare` does; yield each answer as it comes.

    `full` is the run without withdrawal. Setting `stop` ends the run in hand within a token, and the rest with it.
    Raises what `compare_prompt` raises.
    """
    for layer in layers:
        for event in compare_prompt(vlm, prompt, layer, max_new_tokens, full=full, stop=stop):
            if isinstance(event, RunFinished):
                yield LayerAnswer(layer, event.result)
            elif not isinstance(event, RunProgress):
                break
        if stop is not None and stop.is_set():
            return


def first_stable_layer(full: Run, answers: Sequence[LayerAnswer]) -> int | None:
    """The first K from which on all of `answers`, in ascending order of K, are the full one; None if the last isn't."""
    first = None
    for answer in reversed(answers):
        if answer.run.tokens != full.tokens:
            break
        first = answer.layer
    return first
