"""What an answer costs at each withdrawal layer, stage by stage, beside what theory says is left to do."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from vtw_demo.comparison.timed_generate import AnswerCost, timed_generate
from vtw_demo.comparison.timing import in_turn, peak_memory, ratios
from vtw_demo.errors import UserError
from vtw_demo.measurements.flops import cache_left, flops_left
from vtw_demo.withdrawal.architectures import find_decoder
from vtw_demo.withdrawal.segments import visual_token_mask
from vtw_demo.withdrawal.withdraw import withdraw

STAGES = ("encode", "prefill", "decode, per token", "total")
BARE = "bare model"


@dataclass(frozen=True)
class AnswerCosts:
    """All runs of one way to answer.

    - `name`, and `layer`: the withdrawal layer; None where there is no withdrawal.
    - `milliseconds`, (stages, runs); `ratios`, (stages, runs): over the bare model's run beside it. The bare model's
      are over its own median: how steady the machine is.
    - `peak_bytes`: the most memory that was held beside what was held before, in a run of its own that no timing
      includes.
    - `token_layers_left`, `flops_left`, `cache_left`: shares of the bare model's, by the cost model; None where that
      isn't known.
    """

    name: str
    layer: int | None
    milliseconds: tuple[tuple[float, ...], ...]
    ratios: tuple[tuple[float, ...], ...]
    kv_cache_bytes: int
    peak_bytes: int
    token_layers_left: float | None = None
    flops_left: float | None = None
    cache_left: float | None = None

    def ratio(self, stage: str) -> float:
        """The median."""
        return statistics.median(self.ratios[STAGES.index(stage)])

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`, with the medians."""
        medians = {stage: statistics.median(times) for stage, times in zip(STAGES, self.milliseconds, strict=True)}
        return {
            **vars(self),
            "median_ms": medians,
            "median_ratio": {stage: self.ratio(stage) for stage in STAGES},
        }


def measure_answers(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    layers: Sequence[int],
    new_tokens: int,
    rounds: int,
    others: Mapping[str, Callable[[], AbstractContextManager[None]]] | None = None,
) -> tuple[AnswerCosts, ...]:
    """The bare model, withdrawal at each of `layers`, and `others`, which make contexts, by name. In each round each
    has a run of the bare model beside it, and so its own ratios. The bare model comes first.

    Raises UserError for fewer than 2 new tokens, and what `withdraw` raises.
    """
    if new_tokens < 2:
        raise UserError(f"Decoding is timed from the second token on: at least 2 are needed, not {new_tokens}.")

    def answer(context: Callable[[], AbstractContextManager[None]]) -> AnswerCost:
        generate: Any = model.generate
        length: dict[str, Any] = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
        return timed_generate(generate, model, inputs, context(), **length, do_sample=False)

    layer_of = {f"withdrawn at {layer}": layer for layer in layers}
    contexts: dict[str, Any] = {name: partial(withdraw, model, layer) for name, layer in layer_of.items()}
    contexts |= dict(others or {})
    runs: dict[tuple[str, bool], Callable[[], AnswerCost]] = {}
    for name, context in contexts.items():
        for is_bare in (True, False):
            runs[name, is_bare] = partial(answer, nullcontext if is_bare else context)
    made: dict[tuple[str, bool], list[AnswerCost]] = {of: [] for of in runs}
    for of, cost in in_turn(runs, rounds):
        made[of].append(cost)
    # Apart: giving memory back before a run, so that what it takes can be told, makes the run slower.
    ways = {BARE: nullcontext, **contexts}
    peaks = {name: peak_memory(partial(answer, context), model.device) for name, context in ways.items()}
    every_bare = [cost for (_, is_bare), costs in made.items() if is_bare for cost in costs]
    times = _by_stage(every_bare)
    steadiness = tuple(ratios(of_stage, [statistics.median(of_stage)] * len(of_stage)) for of_stage in times)
    results = [AnswerCosts(BARE, None, times, steadiness, every_bare[0].kv_cache_bytes, peaks[BARE])]
    for name in contexts:
        times, layer = _by_stage(made[name, False]), layer_of.get(name)
        beside = tuple(map(ratios, times, _by_stage(made[name, True])))
        held = made[name, False][0].kv_cache_bytes
        left = {} if layer is None else _shares_left(model, inputs, layer)
        results.append(AnswerCosts(name, layer, times, beside, held, peaks[name], **left))
    return tuple(results)


def _by_stage(costs: Sequence[AnswerCost]) -> tuple[tuple[float, ...], ...]:
    rows = ((cost.encode_ms, cost.prefill_ms, cost.decode_ms_per_token or 0.0, cost.total_ms) for cost in costs)
    return tuple(zip(*rows, strict=True))


def _shares_left(model: PreTrainedModel, inputs: Mapping[str, Any], layer: int) -> dict[str, float | None]:
    """What theory says is left at K: token-layers, FLOPs of the prefill, KV cache."""
    total = len(find_decoder(model).layers)
    prompt = inputs["input_ids"].shape[1]
    visual = int(visual_token_mask(model.config, inputs["input_ids"][:1]).sum())
    flops, cache = (of(model.config, prompt, visual) for of in (flops_left, cache_left))
    return {
        "token_layers_left": (layer * prompt + (total - layer) * (prompt - visual)) / (total * prompt),
        "flops_left": flops and (*flops, 1.0)[layer - 1],
        "cache_left": cache and (*cache, 1.0)[layer - 1],
    }
