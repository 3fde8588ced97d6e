"""The embedded model's decoder layers in 4 bits (NF4): seen so in the last steps of the training, and saved so."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from bitsandbytes.functional import get_4bit_type
from torch import nn
from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration

from vtw_demo.embedded.training.model import load

BLOCK = 64


@contextmanager
def seen_in_four_bits(model: LlavaForConditionalGeneration) -> Iterator[None]:
    """Inside, the decoder layers compute with the weights as they will be stored; what is learned there goes to the
    weights themselves (straight-through estimator, arXiv 1308.3432)."""
    layers = model.model.language_model.layers
    weights = [module.weight for module in layers.modules() if isinstance(module, nn.Linear)]
    whole = [weight.data for weight in weights]
    try:
        for weight in weights:
            weight.data = nearest_in_four_bits(weight.data)
        yield
    finally:
        for weight, data in zip(weights, whole, strict=True):
            weight.data = data


def nearest_in_four_bits(weight: torch.Tensor) -> torch.Tensor:
    """What NF4 keeps of `weight`, but for the rounding of the blocks' scales. By torch alone: bitsandbytes quantizes on
    a CPU for as long as a step of training takes."""
    codes = get_4bit_type("nf4", device=weight.device).to(weight.dtype)
    blocks = weight.view(-1, BLOCK)
    scale = blocks.abs().amax(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
    nearest = torch.bucketize(blocks / scale, (codes[1:] + codes[:-1]) / 2)
    return (codes[nearest] * scale).view_as(weight)


def store(options: Any) -> None:
    """Saves a part's model, the decoder layers in 4 bits (NF4, double quantization), the others in bfloat16."""
    model, processor, _ = load(options.runs, options.of)
    bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["model.vision_tower", "model.multi_modal_projector", "lm_head"],
    )
    with tempfile.TemporaryDirectory() as folder:
        model.bfloat16().save_pretrained(folder)
        quantized = LlavaForConditionalGeneration.from_pretrained(
            folder, dtype=torch.bfloat16, quantization_config=bits, device_map=options.device
        )
    for saved in (quantized, processor):
        saved.save_pretrained(options.out)
    print(f"{sum(path.stat().st_size for path in options.out.iterdir()) / 1e6:.1f} MB in {options.out}")
