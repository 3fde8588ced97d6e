"""What this library's own passes cost, in prefills, and what it adds to a bare model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import bitsandbytes
import torch
from PIL import Image
from transformers import PreTrainedModel

from vtw_demo.comparison.compare import compare
from vtw_demo.comparison.timing import Ratio, in_turn, interleaved, peak_memory, ratios
from vtw_demo.measurements.attention import measure_attention
from vtw_demo.measurements.layer_sweep import sweep
from vtw_demo.models.devices import on_model_thread
from vtw_demo.models.loading import VisionLanguageModel
from vtw_demo.withdrawal.architectures import find_decoder
from vtw_demo.withdrawal.withdraw import withdraw

DEQUANTISING = "dequantising the decoder's weights once, in prefills"
MASS_MEMORY = "attention mass of all layers, memory in prefills"


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

    def prefill_under_withdraw() -> None:
        with withdraw(model, layers):
            prefill()

    def prefill_for_each_layer() -> None:
        for layer in range(1, layers):
            with withdraw(model, layer):
                prefill()

    def mass() -> None:
        measure_attention(model, inputs)

    device = model.device
    times = interleaved({"bare": prefill, "withdraw": prefill_under_withdraw, "mass": mass}, rounds, device)
    memory: dict[str, list[float]] = {"bare": [], "mass": []}
    for name, peak in in_turn(
        {"bare": partial(peak_memory, prefill, device), "mass": partial(peak_memory, mass, device)}, rounds
    ):
        memory[name].append(peak)
    swept = {"bare": prefill, "sweep": lambda: sweep(model, inputs), "one by one": prefill_for_each_layer}
    sweep_times = interleaved(swept, max(2, rounds // 3), device)
    in_4_bits = interleaved({"bare": prefill, "dequantise": dequantise}, rounds, device) if quantized else None
    return (
        *([Ratio(MASS_MEMORY, ratios(memory["mass"], memory["bare"]), 1.05)] if min(memory["bare"]) > 0 else []),
        Ratio("withdraw at K = L, in bare prefills", ratios(times["withdraw"], times["bare"]), 1.01),
        Ratio("attention mass of all layers, in prefills", ratios(times["mass"], times["bare"]), 1.15),
        Ratio("sweep of every K, in prefills", ratios(sweep_times["sweep"], sweep_times["bare"]), 1.8),
        Ratio("a prefill for each K, in sweeps", ratios(sweep_times["one by one"], sweep_times["sweep"])),
        *([Ratio(DEQUANTISING, ratios(in_4_bits["dequantise"], in_4_bits["bare"]))] if in_4_bits else []),
    )


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

    times = interleaved({"bare": partial(on_model_thread, bare), "compare": compared}, rounds, vlm.device)
    return Ratio("a comparison, in two bare generate calls", ratios(times["compare"], times["bare"]), 1.05)
