"""How long a prefill takes in each way, in interleaved runs of one prompt at a time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from vtw_demo.comparison.timing import in_turn, synchronise
from vtw_demo.evaluation.answering import prompt_sizes, seeds_of
from vtw_demo.evaluation.samples import EvaluationSample
from vtw_demo.evaluation.ways import FULL, Way
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.withdrawal.architectures import find_decoder

ROUNDS = 3
PROMPTS = 5


@dataclass(frozen=True)
class PrefillTime:
    """Prefills of some prompts, some rounds of each: milliseconds, and the ratio to the full model's in the same round.

    Raises ValueError unless there are as many of both, at least one.
    """

    milliseconds: tuple[float, ...]
    ratios: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.milliseconds or len(self.milliseconds) != len(self.ratios):
            raise ValueError(f"{len(self.milliseconds)} times don't go with {len(self.ratios)} ratios.")

    @property
    def median_ms(self) -> float:
        return statistics.median(self.milliseconds)

    @property
    def median_ratio(self) -> float:
        return statistics.median(self.ratios)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`, with the medians."""
        return {**asdict(self), "median_ms": self.median_ms, "median_ratio": self.median_ratio}


def prefill_times(
    vlm: VisionLanguageModel, samples: Sequence[EvaluationSample], ways: Sequence[Way]
) -> dict[Way, PrefillTime]:
    """Time each of `ways`, which hold `FULL`, on the first few samples. What comes before the decoder isn't in it."""
    times: dict[Way, list[float]] = {way: [] for way in ways}
    for sample in samples[:PROMPTS]:
        inputs = vlm.prepare(sample.open(), sample.question)
        runs = {way: partial(_milliseconds, vlm, inputs, way, seeds_of([sample], 0)) for way in ways}
        for way, taken in in_turn(runs, ROUNDS):
            times[way].append(taken)
    return {
        way: PrefillTime(tuple(taken), tuple(one / full for one, full in zip(taken, times[FULL], strict=True)))
        for way, taken in times.items()
    }


def _milliseconds(vlm: VisionLanguageModel, inputs: dict[str, Any], way: Way, seeds: Sequence[str]) -> float:
    """From the decoder's start to the logits of the first token."""
    starts: list[float] = []

    def note(*_: Any) -> None:
        synchronise(vlm.device)
        starts.append(time.perf_counter())

    hook = find_decoder(vlm.model).register_forward_pre_hook(note)
    try:
        with torch.inference_mode(), way.context(vlm.model, prompt_sizes(vlm, inputs), seeds):
            vlm.model(**inputs, use_cache=True, logits_to_keep=1)
        synchronise(vlm.device)
        return 1e3 * (time.perf_counter() - starts[0])
    finally:
        hook.remove()
