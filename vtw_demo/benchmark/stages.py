"""What an answer costs at each withdrawal layer, stage by stage, beside what theory says is left to do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import CacheLayerMixin

from vtw_demo.comparison.timing import in_turn, peak_memory, synchronise
from vtw_demo.errors import UserError
from vtw_demo.measurements.flops import cache_left, flops_left
from vtw_demo.withdrawal.architectures import find_decoder
from vtw_demo.withdrawal.segments import visual_token_mask
from vtw_demo.withdrawal.withdraw import withdraw

STAGES = ("encode", "prefill", "decode, per token", "total")
BARE = "bare model"


@dataclass(frozen=True)
class AnswerCost:
    """One answer: milliseconds of each of `STAGES`, and bytes of its KV cache."""

    milliseconds: tuple[float, ...]
    kv_cache_bytes: int


@dataclass(frozen=True)
class AnswerCosts:
    """All runs of one way to answer.

    - `name`, and `layer`: the withdrawal layer; None where there is no withdrawal.
    - `milliseconds`, (stages, runs); `ratios`, (stages, runs): over the bare model's run beside it. The bare model's
      are over its own median: how steady the machine is.
    - `peak_bytes`: the most memory that was held beside what was held before, in a run of its own that no timing
      includes; None where that can't be told.
    - `token_layers_left`, `flops_left`, `cache_left`: shares of the bare model's, by the cost model; None where that
      isn't known.
    """

    name: str
    layer: int | None
    milliseconds: tuple[tuple[float, ...], ...]
    ratios: tuple[tuple[float, ...], ...]
    kv_cache_bytes: int
    peak_bytes: int | None
    token_layers_left: float | None
    flops_left: float | None
    cache_left: float | None

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


def answer(
    model: PreTrainedModel, inputs: Mapping[str, Any], new_tokens: int, context: AbstractContextManager
) -> AnswerCost:
    """Let `generate` answer with just so many tokens inside `context`, and time its stages."""
    marks: list[float] = []
    device = model.device

    def mark() -> None:
        synchronise(device)
        marks.append(time.perf_counter())

    class Marker(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
            mark()
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    decoder_starts: list[float] = []

    def note_decoder(*_: Any) -> None:
        if not decoder_starts:
            synchronise(device)
            decoder_starts.append(time.perf_counter())

    hook = find_decoder(model).register_forward_pre_hook(note_decoder)
    try:
        with torch.inference_mode(), context:
            mark()
            output: Any = model.generate(  # type: ignore[operator]
                **inputs,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                stopping_criteria=StoppingCriteriaList([Marker()]),
                return_dict_in_generate=True,
            )
    finally:
        hook.remove()
    start, first, last = marks[0], marks[1], marks[-1]
    decode = (last - first) / (new_tokens - 1) if new_tokens > 1 else 0.0
    seconds = (decoder_starts[0] - start, first - decoder_starts[0], decode, last - start)
    held = [layer for layer in output.past_key_values.layers if isinstance(layer, CacheLayerMixin)]
    parts = [part for layer in held for part in (layer.keys, layer.values) if part is not None]
    return AnswerCost(tuple(1e3 * taken for taken in seconds), sum(part.nbytes for part in parts))


def measure_answers(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    layers: Sequence[int],
    new_tokens: int,
    rounds: int,
    others: Mapping[str, AbstractContextManager] | None = None,
) -> tuple[AnswerCosts, ...]:
    """The bare model, withdrawal at each of `layers`, and `others`, contexts that can be entered again and again, by
    name. In each round each has a run of the bare model beside it, and so its own ratios. The bare model comes first.

    Raises ValueError for fewer than 2 new tokens, and what `withdraw` raises.
    """
    if new_tokens < 2:
        raise UserError(f"Decoding is timed from the second token on: at least 2 are needed, not {new_tokens}.")
    layer_of = {f"withdrawn at {layer}": layer for layer in layers}
    contexts: dict[str, Any] = {name: partial(withdraw, model, layer) for name, layer in layer_of.items()}
    contexts |= dict(others or {})
    runs: dict[tuple[str, bool], Callable[[], AnswerCost]] = {}
    for name, context in contexts.items():
        for is_bare in (True, False):
            runs[name, is_bare] = partial(_answer_in, model, inputs, new_tokens, nullcontext if is_bare else context)
    made: dict[tuple[str, bool], list[AnswerCost]] = {of: [] for of in runs}
    for of, cost in in_turn(runs, rounds):
        made[of].append(cost)
    # Apart: giving memory back before a run, so that what it takes can be told, makes the run slower.
    ways = {BARE: nullcontext, **contexts}
    peaks = {
        name: _peak(partial(_answer_in, model, inputs, new_tokens, way), model.device) for name, way in ways.items()
    }
    every_bare = [cost for (_, is_bare), costs in made.items() if is_bare for cost in costs]
    medians = [statistics.median(times) for times in _by_stage(every_bare)]
    steadiness = tuple(
        _ratios(times, [median] * len(times)) for times, median in zip(_by_stage(every_bare), medians, strict=True)
    )
    results = [_costs(BARE, None, every_bare, steadiness, peaks[BARE], (None, None, None))]
    shares = _shares_left(model, inputs)
    for name in contexts:
        costs, layer = made[name, False], layer_of.get(name)
        ratios = tuple(map(_ratios, _by_stage(costs), _by_stage(made[name, True])))
        left = (None, None, None) if layer is None else shares(layer)
        results.append(_costs(name, layer, costs, ratios, peaks[name], left))
    return tuple(results)


def _costs(
    name: str,
    layer: int | None,
    costs: Sequence[AnswerCost],
    ratios: tuple[tuple[float, ...], ...],
    peak: int | None,
    left: tuple[float | None, float | None, float | None],
) -> AnswerCosts:
    return AnswerCosts(name, layer, _by_stage(costs), ratios, costs[0].kv_cache_bytes, peak, *left)


def _peak(run: Callable[[], Any], device: torch.device) -> int | None:
    with peak_memory(device) as peak:
        run()
    return peak[0] if peak else None


def _by_stage(costs: Sequence[AnswerCost]) -> tuple[tuple[float, ...], ...]:
    return tuple(zip(*(cost.milliseconds for cost in costs), strict=True))


def _ratios(times: Sequence[float], units: Sequence[float]) -> tuple[float, ...]:
    return tuple(taken / max(unit, 1e-9) for taken, unit in zip(times, units, strict=True))


def _shares_left(
    model: PreTrainedModel, inputs: Mapping[str, Any]
) -> Callable[[int], tuple[float, float | None, float | None]]:
    """What theory says is left at a K: token-layers, FLOPs of the prefill, KV cache."""
    total = len(find_decoder(model).layers)
    prompt = inputs["input_ids"].shape[1]
    visual = int(visual_token_mask(model.config, inputs["input_ids"][:1]).sum())
    flops, cache = (of(model.config, prompt, visual) for of in (flops_left, cache_left))

    def at(layer: int) -> tuple[float, float | None, float | None]:
        tokens = (layer * prompt + (total - layer) * (prompt - visual)) / (total * prompt)
        return tokens, *((*shares, 1.0)[layer - 1] if shares else None for shares in (flops, cache))

    return at


def _answer_in(model: PreTrainedModel, inputs: Mapping[str, Any], new_tokens: int, context: Any) -> AnswerCost:
    return answer(model, inputs, new_tokens, context())
