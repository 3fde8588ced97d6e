"""What an answer costs at each withdrawal layer, stage by stage, beside what theory says; and what this library's own
passes cost, in prefills."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import bitsandbytes
import torch
from PIL import Image
from transformers import PreTrainedModel

from vtw_demo.comparison.compare import compare
from vtw_demo.comparison.timed_generate import AnswerCost, timed_generate
from vtw_demo.comparison.timing import Ratio, in_turn, interleaved, peak_memory, ratios
from vtw_demo.errors import UserError
from vtw_demo.measurements.attention import measure_attention
from vtw_demo.measurements.flops import Schedule, kv_cache_bytes_by_layer, prefill_flops, visual_tokens_by_layer
from vtw_demo.measurements.layer_sweep import sweep
from vtw_demo.models.devices import on_model_thread
from vtw_demo.models.loading import VisionLanguageModel
from vtw_demo.withdrawal.architectures import find_decoder
from vtw_demo.withdrawal.segments import visual_token_mask
from vtw_demo.withdrawal.withdraw import Automatic, withdraw

STAGES = ("encode", "prefill", "decode, per token", "total")
BARE = "bare model"
DEQUANTISING = "dequantising the decoder's weights once, in prefills"


@dataclass(frozen=True)
class AnswerCosts:
    """All runs of one way to answer. The bare model's ratios are over its own median: how steady the machine is."""

    name: str
    layer: int | None  # the withdrawal layer
    milliseconds: tuple[tuple[float, ...], ...]  # (stages, runs)
    ratios: tuple[tuple[float, ...], ...]  # over the bare model's run beside it
    kv_cache_bytes: int
    peak_bytes: int  # the most memory that was held beside what was held before, in a run that no timing includes
    token_layers_left: float | None = None  # of the bare model's, as what follows
    flops_left: float | None = None
    cache_left: float | None = None

    def ratio(self, stage: str) -> float:
        return statistics.median(self.ratios[STAGES.index(stage)])

    def to_json(self) -> dict[str, Any]:
        medians = {stage: statistics.median(times) for stage, times in zip(STAGES, self.milliseconds, strict=True)}
        return {**vars(self), "median_ms": medians, "median_ratio": {stage: self.ratio(stage) for stage in STAGES}}


def measure_answers(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    layers: Sequence[int],
    new_tokens: int,
    rounds: int,
    others: Mapping[str, Callable[[], AbstractContextManager[None]]] | None = None,
    schedules: Mapping[str, Schedule] | None = None,
) -> tuple[AnswerCosts, ...]:
    """The bare model, withdrawal at each of `layers`, and `others`, which make contexts, by name; `schedules` are those
    of others that take visual tokens out. In each round each has a run of the bare model beside it, and so its own
    ratios."""
    if new_tokens < 2:
        raise UserError(f"Decoding is timed from the second token on: at least 2 are needed, not {new_tokens}.")

    def answer(context: Callable[[], AbstractContextManager[None]]) -> AnswerCost:
        generate: Any = model.generate
        length: dict[str, Any] = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
        return timed_generate(generate, model, inputs, context(), **length, do_sample=False)

    layer_of = {f"withdrawn at {layer}": layer for layer in layers}
    contexts: dict[str, Any] = {name: partial(withdraw, model, layer) for name, layer in layer_of.items()}
    contexts |= others or {}
    runs = {
        (name, is_bare): partial(answer, nullcontext if is_bare else context)
        for name, context in contexts.items()
        for is_bare in (True, False)
    }
    made: dict[tuple[str, bool], list[AnswerCost]] = {of: [] for of in runs}
    for of, cost in in_turn(runs, rounds, shown_as="answers"):
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
        at = layer or (schedules or {}).get(name)
        left = {} if at is None else _shares_left(model, inputs, at)
        results.append(AnswerCosts(name, layer, times, beside, held, peaks[name], **left))
    return tuple(results)


def _by_stage(costs: Sequence[AnswerCost]) -> tuple[tuple[float, ...], ...]:
    rows = ((cost.encode_ms or 0.0, cost.prefill_ms, cost.decode_ms_per_token or 0.0, cost.total_ms) for cost in costs)
    return tuple(zip(*rows, strict=True))


def _shares_left(model: PreTrainedModel, inputs: Mapping[str, Any], at: int | Schedule) -> dict[str, float | None]:
    """What theory says is left at K, or by a schedule: token-layers, FLOPs of the prefill, KV cache."""
    total = len(find_decoder(model).layers)
    prompt = inputs["input_ids"].shape[1]
    visual = int(visual_token_mask(model.config, inputs["input_ids"][:1]).sum())
    shares: dict[str, float | None] = {"flops_left": None, "cache_left": None}
    size = (model.config, prompt, visual)
    with suppress(UserError):  # costs that aren't known
        shares["flops_left"] = prefill_flops(*size, at) / prefill_flops(*size, total)
        shares["cache_left"] = sum(kv_cache_bytes_by_layer(*size, at)) / sum(kv_cache_bytes_by_layer(*size, total))
    left = visual_tokens_by_layer(total, visual, at)
    return {"token_layers_left": sum(prompt - visual + count for count in left) / (total * prompt), **shares}


@torch.inference_mode()
def measure_overheads(model: PreTrainedModel, inputs: Mapping[str, Any], rounds: int) -> tuple[Ratio, ...]:
    """The library's passes over a bare prefill, and prefills one by one for each K over a sweep of them all; for a
    decoder in 4 bits the share of a prefill that goes into dequantising its weights, which withdrawal can't remove."""
    layers = len(find_decoder(model).layers)
    quantized = [module for module in find_decoder(model).modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]

    def dequantise() -> None:
        for module in quantized:
            weight: Any = module.weight
            bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)

    def prefill() -> None:
        model(**inputs, logits_to_keep=1)

    def prefills_under_withdraw(at: Sequence[int | Automatic], threshold: float | None = None) -> None:
        for layer in at:
            with withdraw(model, layer, threshold=threshold):
                prefill()

    mass: Callable[[], Any] = partial(measure_attention, model, inputs)
    withdrawn: Callable[[], Any] = partial(prefills_under_withdraw, [layers])
    never: Callable[[], Any] = partial(prefills_under_withdraw, ["auto"], threshold=2.0)  # above which no cosine is
    device = model.device
    runs = {"bare": prefill, "withdraw": withdrawn, "auto": never, "mass": mass}
    runs |= {"dequantise": dequantise} if quantized else {}
    times = interleaved(runs, rounds, device, "passes")
    memory: dict[str, list[float]] = {"bare": [], "mass": []}
    passes = {"bare": partial(peak_memory, prefill, device), "mass": partial(peak_memory, mass, device)}
    for name, peak in in_turn(passes, rounds, shown_as="memory"):
        memory[name].append(peak)
    runs = {"bare": prefill, "sweep": lambda: sweep(model, inputs)}
    runs["one by one"] = partial(prefills_under_withdraw, range(1, layers))
    sweep_times = interleaved(runs, max(2, rounds // 3), device, "sweeps")
    of_memory = ratios(memory["mass"], memory["bare"]) if min(memory["bare"]) > 0 else ()
    found = (
        Ratio("attention mass of all layers, memory in prefills", of_memory, 1.05),
        Ratio("withdraw at K = L, in bare prefills", ratios(times["withdraw"], times["bare"]), 1.01),
        Ratio('withdraw at "auto" that chooses K = L, in bare prefills', ratios(times["auto"], times["bare"]), 1.03),
        Ratio("attention mass of all layers, in prefills", ratios(times["mass"], times["bare"]), 1.15),
        Ratio("sweep of every K, in prefills", ratios(sweep_times["sweep"], sweep_times["bare"]), 1.8),
        Ratio("a prefill for each K, in sweeps", ratios(sweep_times["one by one"], sweep_times["sweep"])),
        Ratio(DEQUANTISING, ratios(times["dequantise"], times["bare"]) if quantized else ()),
    )
    return tuple(ratio for ratio in found if ratio.rounds)


def measure_comparison(
    vlm: VisionLanguageModel, image: Image.Image, question: str, layer: int, new_tokens: int, rounds: int
) -> Ratio:
    """What `compare` takes over two bare `generate` calls that give the same answers, inputs prepared in both."""

    def compared() -> None:
        for _ in compare(vlm, image, question, layer, new_tokens):
            pass

    def bare() -> None:
        inputs = vlm.prepare(image, question)
        with torch.inference_mode():
            vlm.generate(**inputs, max_new_tokens=new_tokens)
            with withdraw(vlm.model, layer):
                vlm.generate(**inputs, max_new_tokens=new_tokens)

    runs: dict[str, Callable[[], Any]] = {"bare": partial(on_model_thread, bare), "compare": compared}
    times = interleaved(runs, rounds, vlm.device, "comparisons")
    return Ratio("a comparison, in two bare generate calls", ratios(times["compare"], times["bare"]), 1.05)
