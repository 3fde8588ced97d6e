"""Both runs again and again, in turn: medians and spreads instead of one noisy pair of times, and each layer's time."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from transformers import PreTrainedModel

from vtw_demo.comparison.compare import RunName
from vtw_demo.comparison.timed_generate import Run, run_timed
from vtw_demo.comparison.timing import Clock, Spread, in_turn
from vtw_demo.errors import UserError
from vtw_demo.formats import PlainData
from vtw_demo.models.loading import VisionLanguageModel
from vtw_demo.models.prompt import Prompt
from vtw_demo.withdrawal.architectures import find_decoder
from vtw_demo.withdrawal.withdraw import check_layer, whole_number, withdraw

Stage = Literal["encode_ms", "prefill_ms", "decode_ms_per_token", "total_ms"]
STAGES: tuple[Stage, ...] = get_args(Stage)
MAXIMUM_ROUNDS = 100


@dataclass(frozen=True)
class StageTimes:
    """Milliseconds of one run's stages in each round."""

    encode_ms: tuple[float, ...]
    prefill_ms: tuple[float, ...]
    decode_ms_per_token: tuple[float, ...]  # empty where the answer has one token only
    total_ms: tuple[float, ...]

    @classmethod
    def of_runs(cls, runs: list[Run]) -> StageTimes:
        times = {stage: [getattr(run, stage) for run in runs] for stage in STAGES}
        return cls(**{stage: () if None in of_runs else tuple(of_runs) for stage, of_runs in times.items()})

    def then(self, later: StageTimes) -> StageTimes:
        return StageTimes(**{stage: getattr(self, stage) + getattr(later, stage) for stage in STAGES})


@dataclass(frozen=True)
class RepeatedTiming(PlainData):
    layer: int
    full: StageTimes
    withdrawn: StageTimes

    @property
    def rounds(self) -> int:
        return len(self.full.total_ms)

    def times(self, run: RunName, stage: Stage) -> tuple[float, ...]:
        """Milliseconds in each round; empty for a stage that the run hasn't."""
        return getattr(self.full if run == "full" else self.withdrawn, stage)

    def spread(self, run: RunName, stage: Stage) -> Spread | None:
        """Of the milliseconds over all rounds; None for a stage that the run hasn't."""
        times = self.times(run, stage)
        return Spread.of(times) if times else None

    def ratio(self, stage: Stage) -> Spread | None:
        """Of the withdrawn run's time over the full run's in the same round, over all rounds; None for a stage that one
        of them hasn't."""
        full, withdrawn = self.times("full", stage), self.times("withdrawn", stage)
        if not full or not withdrawn or min(full) == 0:
            return None
        return Spread.of([after / before for after, before in zip(withdrawn, full, strict=True)])

    def to_json(self) -> dict[str, Any]:
        full, withdrawn = partial(self.spread, "full"), partial(self.spread, "withdrawn")
        spreads = {
            name: {stage: (spread := of(stage)) and asdict(spread) for stage in STAGES}
            for name, of in (("full_spread", full), ("withdrawn_spread", withdrawn), ("ratio", self.ratio))
        }
        return {**super().to_json(), **spreads}


def repeat_timing(
    vlm: VisionLanguageModel,
    prompt: Prompt,
    layer: int,
    max_new_tokens: int,
    rounds: int,
    stop: threading.Event | None = None,
    before: RepeatedTiming | None = None,
) -> Iterator[RepeatedTiming]:
    """Make both runs of a query `rounds` times, after those of `before`; yield what is measured so far after each.

    Rounds go full, withdrawn, then withdrawn, full, and so on: a machine that slows down slows down both runs alike.
    Setting `stop` ends the run in hand within a token; its round isn't counted.
    """
    layer = check_layer(layer, vlm.layers)
    try:
        rounds = whole_number(rounds, "The number of rounds")
    except TypeError as error:
        raise UserError(str(error)) from error
    if not 1 <= rounds <= MAXIMUM_ROUNDS:
        raise UserError(f"The number of rounds must be from 1 to {MAXIMUM_ROUNDS}; this is {rounds}.")
    stopped = stop or threading.Event()

    def run(withdrawal_layer: int) -> Any:
        *_, last = run_timed(vlm, prompt, withdrawal_layer, max_new_tokens, stopped)
        return last

    def measured() -> Iterator[RepeatedTiming]:
        runs: dict[RunName, Any] = {"full": partial(run, vlm.layers), "withdrawn": partial(run, layer)}
        if before is not None and before.rounds % 2:
            runs = dict(reversed(runs.items()))
        made: dict[RunName, list[Run]] = {name: [] for name in runs}
        for name, result in in_turn(runs, rounds, warm_up=False):
            if not isinstance(result, Run):  # stopped
                return
            made[name].append(result)
            if len(made["full"]) == len(made["withdrawn"]):
                full, withdrawn = StageTimes.of_runs(made["full"]), StageTimes.of_runs(made["withdrawn"])
                if before is not None:
                    full, withdrawn = before.full.then(full), before.withdrawn.then(withdrawn)
                yield RepeatedTiming(layer, full, withdrawn)

    return measured()


@dataclass(frozen=True)
class LayerTimes(PlainData):
    """Milliseconds of each decoder layer in a prefill, medians over `rounds` passes of each run.

    A layer's time has what withdrawal does around it: taking tokens out of the sequence before layer K, `layer`, and
    their masks and positions before each layer from K on. On a GPU the device is waited for before and after each
    layer, so the times add up to more than a prefill takes that nobody watches.
    """

    layer: int
    rounds: int
    full: tuple[float, ...]
    withdrawn: tuple[float, ...]


def measure_layer_times(model: PreTrainedModel, inputs: Mapping[str, Any], layer: int, rounds: int = 5) -> LayerTimes:
    """Time each decoder layer in prefills of `inputs`, full and withdrawn at `layer` (K) in turn, as `generate` runs
    them: with a KV cache, and logits of the last position only."""
    layers = len(find_decoder(model).layers)
    layer = check_layer(layer, layers)

    def prefill(withdrawal_layer: int) -> list[float]:
        withdrawn = withdraw(model, withdrawal_layer, this_thread_only=True)
        with torch.inference_mode(), withdrawn, _timed_layers(model) as times:
            model(**inputs, use_cache=True, logits_to_keep=1)
        return times

    runs: dict[RunName, Any] = {"full": partial(prefill, layers), "withdrawn": partial(prefill, layer)}
    passes: dict[RunName, list[list[float]]] = {name: [] for name in runs}
    for name, times in in_turn(runs, rounds):
        passes[name].append(times)
    full, withdrawn = (tuple(map(statistics.median, zip(*of_run, strict=True))) for of_run in passes.values())
    return LayerTimes(layer, rounds, full, withdrawn)


@contextmanager
def _timed_layers(model: PreTrainedModel) -> Iterator[list[float]]:
    """The milliseconds of each decoder layer in the forward pass that is made inside. Entered inside `withdraw`, its
    hooks stand around those of the withdrawal."""
    layers, clock = find_decoder(model).layers, Clock(model.device)
    started, times = [0.0] * len(layers), [0.0] * len(layers)

    def start(index: int, *_: Any) -> None:
        started[index] = clock.now()

    def end(index: int, *_: Any) -> None:
        times[index] = (clock.now() - started[index]) * 1e3

    with ExitStack() as hooks:
        for index, layer in enumerate(layers):
            hooks.callback(layer.register_forward_pre_hook(partial(start, index), prepend=True).remove)
            hooks.callback(layer.register_forward_hook(partial(end, index)).remove)
        yield times
