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
from vtw_demo.withdrawal.prune import pruned_by
from vtw_demo.withdrawal.withdraw import Automatic, check_layer, read_layer, whole_number

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
    beside: StageTimes | None = None
    recipe: str | None = None  # of the run beside

    @property
    def rounds(self) -> int:
        return len(self.full.total_ms)

    def times(self, run: RunName, stage: Stage) -> tuple[float, ...]:
        """Milliseconds in each round; empty for a stage that the run hasn't."""
        return getattr(getattr(self, run), stage, ())

    def spread(self, run: RunName, stage: Stage) -> Spread | None:
        """Of the milliseconds over all rounds; None for a stage that the run hasn't."""
        times = self.times(run, stage)
        return Spread.of(times) if times else None

    def ratio(self, stage: Stage, run: RunName = "withdrawn") -> Spread | None:
        """Of that run's time over the full run's in the same round, over all rounds; None for a stage that one of them
        hasn't."""
        full, other = self.times("full", stage), self.times(run, stage)
        if not full or not other or min(full) == 0:
            return None
        return Spread.of([after / before for after, before in zip(other, full, strict=True)])

    def to_json(self) -> dict[str, Any]:
        of: dict[str, Any] = {f"{run}_spread": partial(self.spread, run) for run in ("full", "withdrawn", "beside")}
        of |= {"ratio": self.ratio, "beside_ratio": partial(self.ratio, run="beside")}
        spreads = {
            name: {stage: (spread := spread_of(stage)) and asdict(spread) for stage in STAGES}
            for name, spread_of in of.items()
            if self.beside is not None or "beside" not in name
        }
        return {**super().to_json(), **spreads}


def repeat_timing(
    vlm: VisionLanguageModel,
    prompt: Prompt,
    layer: int | Automatic,
    max_new_tokens: int,
    rounds: int,
    stop: threading.Event | None = None,
    before: RepeatedTiming | None = None,
    recipe: str | None = None,
) -> Iterator[RepeatedTiming]:
    """Make both runs of a query `rounds` times, and one by `recipe`, after those of `before`; yield what is measured so
    far after each.

    Rounds go full, withdrawn, then withdrawn, full, and so on: a machine that slows down slows down all runs alike.
    Setting `stop` ends the run in hand within a token; its round isn't counted.
    """
    layer = read_layer(layer, vlm.layers)
    try:
        rounds = whole_number(rounds, "The number of rounds")
    except TypeError as error:
        raise UserError(str(error)) from error
    if not 1 <= rounds <= MAXIMUM_ROUNDS:
        raise UserError(f"The number of rounds must be from 1 to {MAXIMUM_ROUNDS}; this is {rounds}.")
    stopped = stop or threading.Event()

    def run(pruned: int | str) -> Any:
        *_, last = run_timed(vlm, prompt, pruned, max_new_tokens, stopped)
        return last

    def measured() -> Iterator[RepeatedTiming]:
        runs: dict[RunName, Any] = {"full": partial(run, vlm.layers), "withdrawn": partial(run, layer)}
        runs |= {} if recipe is None else {"beside": partial(run, recipe)}
        if before is not None and before.rounds % 2:
            runs = dict(reversed(runs.items()))
        made: dict[RunName, list[Run]] = {name: [] for name in runs}
        for name, result in in_turn(runs, rounds, warm_up=False):
            if not isinstance(result, Run):  # stopped
                return
            made[name].append(result)
            if len({len(of_run) for of_run in made.values()}) == 1:
                times: dict[str, Any] = {name: StageTimes.of_runs(of_run) for name, of_run in made.items()}
                if before is not None:
                    times = {name: getattr(before, name).then(of_run) for name, of_run in times.items()}
                yield RepeatedTiming(made["withdrawn"][-1].chosen_layer or int(layer), **times, recipe=recipe)

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
    beside: tuple[float, ...] | None = None


def measure_layer_times(
    model: PreTrainedModel, inputs: Mapping[str, Any], layer: int, rounds: int = 5, recipe: str | None = None
) -> LayerTimes:
    """Time each decoder layer in prefills of `inputs`, full, withdrawn at `layer` (K) and by a `recipe` of `prune` in
    turn, as `generate` runs them: with a KV cache, and logits of the last position only."""
    layers = len(find_decoder(model).layers)
    layer = check_layer(layer, layers)

    def prefill(pruned: int | str) -> list[float]:
        with torch.inference_mode(), pruned_by(model, pruned), _timed_layers(model) as times:
            model(**inputs, use_cache=True, logits_to_keep=1)
        return times

    runs: dict[RunName, Any] = {"full": partial(prefill, layers), "withdrawn": partial(prefill, layer)}
    runs |= {} if recipe is None else {"beside": partial(prefill, recipe)}
    passes: dict[RunName, list[list[float]]] = {name: [] for name in runs}
    for name, times in in_turn(runs, rounds):
        passes[name].append(times)
    medians = (tuple(map(statistics.median, zip(*of_run, strict=True))) for of_run in passes.values())
    return LayerTimes(layer, rounds, *medians)


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
