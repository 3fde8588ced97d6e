"""Both runs again and again, in turn: medians and spreads instead of one noisy pair of times."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, get_args

from vtw_demo.comparison.compare import RunName
from vtw_demo.comparison.timed_generate import Run, run_timed
from vtw_demo.comparison.timing import Spread, in_turn
from vtw_demo.errors import UserError
from vtw_demo.models.loading import VisionLanguageModel
from vtw_demo.models.prompt import Prompt
from vtw_demo.withdrawal.withdraw import check_layer

Stage = Literal["encode_ms", "prefill_ms", "decode_ms_per_token", "total_ms"]
STAGES: tuple[Stage, ...] = get_args(Stage)
MAXIMUM_ROUNDS = 100


@dataclass(frozen=True)
class StageTimes:
    """Milliseconds of one run's stages in each round, as in `vtw_demo.comparison.timed_generate.Run`.

    `decode_ms_per_token` is empty where the answer has one token only.
    """

    encode_ms: tuple[float, ...]
    prefill_ms: tuple[float, ...]
    decode_ms_per_token: tuple[float, ...]
    total_ms: tuple[float, ...]

    @classmethod
    def of_runs(cls, runs: list[Run]) -> StageTimes:
        times = {stage: [getattr(run, stage) for run in runs] for stage in STAGES}
        return cls(**{stage: () if None in of_runs else tuple(of_runs) for stage, of_runs in times.items()})


@dataclass(frozen=True)
class RepeatedTiming:
    """Both runs' times, round by round, withdrawn at `layer`."""

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
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or not 1 <= rounds <= MAXIMUM_ROUNDS:
        raise UserError(f"The number of rounds must be from 1 to {MAXIMUM_ROUNDS}; this is {rounds!r}.")
    check_layer(layer, vlm.layers)
    return _rounds(vlm, prompt, layer, max_new_tokens, rounds, stop or threading.Event())


def _rounds(
    vlm: VisionLanguageModel, prompt: Prompt, layer: int, max_new_tokens: int, rounds: int, stop: threading.Event
) -> Iterator[RepeatedTiming]:
    def run(withdrawal_layer: int) -> Run | None:
        steps = run_timed(vlm, prompt, withdrawal_layer, max_new_tokens, stop)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value

    runs: dict[RunName, Any] = {"full": partial(run, vlm.layers), "withdrawn": partial(run, layer)}
    made: dict[RunName, list[Run]] = {name: [] for name in runs}
    for name, result in in_turn(runs, rounds, warm_up=False):
        if result is None:
            return
        made[name].append(result)
        if len(made["full"]) == len(made["withdrawn"]):
            yield RepeatedTiming(layer, StageTimes.of_runs(made["full"]), StageTimes.of_runs(made["withdrawn"]))
