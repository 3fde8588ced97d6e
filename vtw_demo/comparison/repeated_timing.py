"""Both runs again and again, in turn: medians and spreads instead of one noisy pair of times."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from vtw_demo.comparison.compare import RunName
from vtw_demo.comparison.timed_generate import Run, run_timed
from vtw_demo.errors import UserError
from vtw_demo.models.loading import VisionLanguageModel
from vtw_demo.models.prompt import Prompt
from vtw_demo.withdrawal.withdraw import check_layer

Stage = Literal["encode_ms", "prefill_ms", "decode_ms_per_token", "total_ms"]
STAGES: tuple[Stage, ...] = get_args(Stage)
MAXIMUM_ROUNDS = 100


@dataclass(frozen=True)
class Spread:
    """Where the numbers of several rounds lie. Raises ValueError for numbers that aren't in order."""

    lowest: float
    lower_quartile: float
    median: float
    upper_quartile: float
    highest: float

    def __post_init__(self) -> None:
        values = list(vars(self).values())
        if values != sorted(values):
            raise ValueError(f"Lowest, quartiles and highest must be in order; they are {values}.")

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one number or more; quartiles lie between the numbers next to them, in proportion."""
        return cls(*np.percentile(values, [0, 25, 50, 75, 100]).tolist())


@dataclass(frozen=True)
class StageTimes:
    """Milliseconds of one run's stages in each round, as in `vtw_demo.comparison.timed_generate.Run`.

    `decode_ms_per_token` is empty where the answer has one token only.

    Raises ValueError for no round, numbers of rounds that differ, and times below 0.
    """

    encode_ms: tuple[float, ...]
    prefill_ms: tuple[float, ...]
    decode_ms_per_token: tuple[float, ...]
    total_ms: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.total_ms:
            raise ValueError("There is at least 1 round; total_ms is empty.")
        for stage in STAGES:
            times = self.of(stage)
            if len(times) != len(self.total_ms) and (times or stage != "decode_ms_per_token"):
                raise ValueError(f"{stage} has {len(times)} rounds, total_ms has {len(self.total_ms)}.")
            if not all(time >= 0 for time in times):
                raise ValueError(f"Times can't be negative; {stage} has {min(times)} ms.")

    def of(self, stage: Stage) -> tuple[float, ...]:
        times: tuple[float, ...] = getattr(self, stage)
        return times


@dataclass(frozen=True)
class RepeatedTiming:
    """Both runs' times, round by round, withdrawn at `layer`.

    Raises ValueError for a layer below 1 and numbers of rounds that differ.
    """

    layer: int
    full: StageTimes
    withdrawn: StageTimes

    def __post_init__(self) -> None:
        if self.layer < 1:
            raise ValueError(f"The withdrawal layer is at least 1; this is {self.layer}.")
        if len(self.withdrawn.total_ms) != self.rounds:
            raise ValueError(f"full has {self.rounds} rounds, withdrawn has {len(self.withdrawn.total_ms)}.")

    @property
    def rounds(self) -> int:
        return len(self.full.total_ms)

    def times(self, run: RunName, stage: Stage) -> tuple[float, ...]:
        """Milliseconds in each round; empty for a stage that the run hasn't."""
        return (self.full if run == "full" else self.withdrawn).of(stage)

    def spread(self, run: RunName, stage: Stage) -> Spread | None:
        """Of the milliseconds over all rounds; None for a stage that the run hasn't."""
        times = self.times(run, stage)
        return Spread.of(times) if times else None

    def ratio(self, stage: Stage) -> Spread | None:
        """Of the withdrawn run's time over the full run's in the same round, over all rounds; None for a stage that one
        of them hasn't."""
        full, withdrawn = self.full.of(stage), self.withdrawn.of(stage)
        if not full or not withdrawn or min(full) == 0:
            return None
        return Spread.of([after / before for after, before in zip(withdrawn, full, strict=True)])

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`: all rounds, and what they come to."""

        def plain(spreads: dict[Stage, Spread | None]) -> dict[str, Any]:
            return {stage: None if spread is None else asdict(spread) for stage, spread in spreads.items()}

        return {
            **asdict(self),
            "rounds": self.rounds,
            "full_spread": plain({stage: self.spread("full", stage) for stage in STAGES}),
            "withdrawn_spread": plain({stage: self.spread("withdrawn", stage) for stage in STAGES}),
            "ratio": plain({stage: self.ratio(stage) for stage in STAGES}),
        }


def repeat_timing(
    vlm: VisionLanguageModel,
    prompt: Prompt,
    layer: int,
    max_new_tokens: int,
    rounds: int,
    stop: threading.Event | None = None,
) -> Iterator[RepeatedTiming]:
    """Make both runs of a query `rounds` times; yield what is measured so far after each round.

    `layer` is the withdrawal layer K. Runs are those of `compare`, and nobody reads along. Rounds go full,
    withdrawn, then withdrawn, full, and so on: a machine that slows down slows down both runs alike. Setting `stop`
    ends the run in hand within a token; its round isn't counted.

    Raises, before anything runs, ValueError for rounds outside 1 to 100 and a layer outside 1 to L, and
    TypeError for a layer that is no integer.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or not 1 <= rounds <= MAXIMUM_ROUNDS:
        raise UserError(f"The number of rounds must be from 1 to {MAXIMUM_ROUNDS}; this is {rounds!r}.")
    check_layer(layer, vlm.layers)
    return _rounds(vlm, prompt, layer, max_new_tokens, rounds, stop or threading.Event())


def _rounds(
    vlm: VisionLanguageModel,
    prompt: Prompt,
    layer: int,
    max_new_tokens: int,
    rounds: int,
    stop: threading.Event,
) -> Iterator[RepeatedTiming]:
    layers: dict[RunName, int] = {"full": vlm.layers, "withdrawn": layer}
    order: list[RunName] = ["full", "withdrawn"]
    made: dict[RunName, list[Run]] = {name: [] for name in order}
    for _ in range(rounds):
        for name in order:
            run = _run(vlm, prompt, layers[name], max_new_tokens, stop)
            if run is None:
                return
            made[name].append(run)
        order.reverse()
        yield RepeatedTiming(layer, _stage_times(made["full"]), _stage_times(made["withdrawn"]))


def _run(
    vlm: VisionLanguageModel, prompt: Prompt, layer: int, max_new_tokens: int, stop: threading.Event
) -> Run | None:
    """One timed run to its end; None where it was stopped."""
    steps = run_timed(vlm, prompt, layer, max_new_tokens, stop)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Run | None = end.value
            return result


def _stage_times(runs: list[Run]) -> StageTimes:
    decode = [run.decode_ms_per_token for run in runs if run.decode_ms_per_token is not None]
    return StageTimes(
        encode_ms=tuple(run.encode_ms for run in runs),
        prefill_ms=tuple(run.prefill_ms for run in runs),
        decode_ms_per_token=tuple(decode) if len(decode) == len(runs) else (),
        total_ms=tuple(run.total_ms for run in runs),
    )
