"""Speed, measured as ratios within rounds of interleaved runs, on models with random weights."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, PreTrainedModel

from vtw_demo.family_cases import find_decoder
from vtw_demo.sweep import sweep
from vtw_demo.withdrawal import withdraw


@dataclass(frozen=True)
class Shape:
    """A LLaVA's decoder and its number of visual tokens, a square."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    visual_tokens: int

    def __str__(self) -> str:
        return f"{self.layers} layers, hidden {self.hidden}, {self.visual_tokens} visual tokens"


SHAPES = {"small": Shape(layers=24, hidden=1024, intermediate=2816, heads=16, visual_tokens=576)}


@dataclass(frozen=True)
class Ratio:
    """What something took in units of something else, in each round. Raises ValueError without a round."""

    name: str
    rounds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.rounds or min(self.rounds) <= 0:
            raise ValueError(f"{self.name} needs a positive ratio a round; these are {self.rounds}.")

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "median": self.median}


def random_model(name: str, text_tokens: int, tokens_before: int) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    """A LLaVA of a shape of `SHAPES` with random weights, and inputs with a picture and so many text tokens, of which
    `tokens_before` come before the picture.

    Its vision tower is a small one: encoding the picture is left out of what is measured here.
    """
    shape = SHAPES[name]
    if not 0 <= tokens_before < text_tokens:
        raise ValueError(
            f"Of {text_tokens} text tokens {tokens_before} can't come before the picture: at least one comes after it."
        )
    side = round(shape.visual_tokens**0.5)
    text = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        vocab_size=32_064,
        max_position_embeddings=4096,
    )
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=2 * side,
        patch_size=2,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=32_000, vision_feature_layer=-1)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    ids = torch.randint(3, 30_000, (1, text_tokens))
    image = torch.full((1, shape.visual_tokens), config.image_token_id)
    ids = torch.cat([ids[:, :tokens_before], image, ids[:, tokens_before:]], dim=1)
    pixels = torch.randn(1, 3, 2 * side, 2 * side)
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


@torch.inference_mode()
def measure_sweep(model: PreTrainedModel, inputs: dict[str, torch.Tensor], rounds: int) -> tuple[Ratio, ...]:
    """The sweep of every K in prefills, and how many times as fast it is as a prefill for each K."""
    layers = range(1, len(find_decoder(model).layers))

    def prefill() -> None:
        model(**inputs, logits_to_keep=1)

    def prefill_for_each_layer() -> None:
        for layer in layers:
            with withdraw(model, layer):
                prefill()

    times = interleaved(
        {"prefill": prefill, "sweep": lambda: sweep(model, inputs), "one by one": prefill_for_each_layer}, rounds
    )
    return (
        Ratio("sweep of every K, in prefills", _ratios(times["sweep"], times["prefill"])),
        Ratio("a prefill for each K, in sweeps", _ratios(times["one by one"], times["sweep"])),
    )


def interleaved(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds that each of `runs` took in each round, all of them in turn in every round, after one to warm up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_number > 0:
                times[name].append(time.perf_counter() - start)
    return times


def _ratios(times: list[float], units: list[float]) -> tuple[float, ...]:
    return tuple(taken / unit for taken, unit in zip(times, units, strict=True))
