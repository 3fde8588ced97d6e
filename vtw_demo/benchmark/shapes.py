"""Real architectures with random weights: speed and memory don't depend on what the weights say."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import bitsandbytes
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    VideoLlavaConfig,
)

from vtw_demo.errors import UserError
from vtw_demo.models.loading import EMBEDDED_FOLDER, Quantization
from vtw_demo.withdrawal.architectures import find_decoder

Pixels = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """A model's architecture, and what one prompt's picture or clip becomes.

    - `visual_tokens`: of one prompt; `placeholder`: the name of the configuration's token id that stands for them.
    - `pixels`: the model's inputs for one prompt beside its tokens.
    """

    config: Callable[[], PreTrainedConfig]
    visual_tokens: int
    pixels: Callable[[], Pixels]
    placeholder: str = "image_token_id"


def _llama(hidden: int, intermediate: int, layers: int, heads: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=32_064,
        max_position_embeddings=4096,
    )


def _clip_large(image_size: int = 336) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=image_size,
        patch_size=14,
        projection_dim=768,
    )


def _llava(hidden: int, intermediate: int, layers: int, heads: int) -> Shape:
    def config() -> LlavaConfig:
        text = _llama(hidden, intermediate, layers, heads)
        return LlavaConfig(vision_config=_clip_large(), text_config=text, image_token_index=32_000)

    return Shape(config, 576, lambda: {"pixel_values": torch.randn(1, 3, 336, 336)})


def _llava_next() -> LlavaNextConfig:
    pinpoints = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    return LlavaNextConfig(
        vision_config=_clip_large(),
        text_config=_llama(4096, 11_008, 32, 32),
        image_token_index=32_000,
        image_grid_pinpoints=pinpoints,
    )


def _video_llava() -> VideoLlavaConfig:
    return VideoLlavaConfig(
        vision_config=_clip_large(224),
        text_config=_llama(4096, 11_008, 32, 32),
        image_token_index=32_000,
        video_token_index=32_001,
    )


def _qwen() -> Qwen2_5_VLConfig:
    return Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 3584,
            "intermediate_size": 18_944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152_064,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        vision_config={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    )


def _small(visual_tokens: int) -> Shape:
    """For a CPU. Its vision tower is a small one: withdrawal leaves encoding the picture as it is."""
    side = math.isqrt(visual_tokens)

    def config() -> LlavaConfig:
        vision = CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=2 * side,
            patch_size=2,
        )
        text = _llama(1024, 2816, 24, 16)
        return LlavaConfig(vision_config=vision, text_config=text, image_token_index=32_000, vision_feature_layer=-1)

    return Shape(config, side * side, lambda: {"pixel_values": torch.randn(1, 3, 2 * side, 2 * side)})


SHAPES: dict[str, Shape] = {
    "small": _small(576),
    # About as many visual tokens as LLaVA-NeXT has, a square.
    "small-2880": _small(54 * 54),
    "embedded": Shape(
        lambda: AutoConfig.from_pretrained(EMBEDDED_FOLDER), 196, lambda: {"pixel_values": torch.randn(1, 3, 224, 224)}
    ),
    "llava-1.5-7b": _llava(4096, 11_008, 32, 32),
    "llava-1.5-13b": _llava(5120, 13_824, 40, 40),
    # 672 by 672 pixels: an overview and four tiles, and the end of each of the tiles' 48 rows.
    "llava-next-7b": Shape(
        _llava_next,
        576 + 48 * 48 + 48,
        lambda: {"pixel_values": torch.randn(1, 5, 3, 336, 336), "image_sizes": torch.tensor([[672, 672]])},
    ),
    # Eight frames, each with a class token.
    "video-llava-7b": Shape(
        _video_llava, 8 * 257, lambda: {"pixel_values_videos": torch.randn(1, 8, 3, 224, 224)}, "video_token_id"
    ),
    # 1,008 by 1,008 pixels.
    "qwen2.5-vl-7b": Shape(
        _qwen,
        36 * 36,
        lambda: {
            "pixel_values": torch.randn(72 * 72, 3 * 2 * 14 * 14),
            "image_grid_thw": torch.tensor([[1, 72, 72]]),
        },
    ),
}


def random_model(
    name: str,
    dtype: torch.dtype = torch.float32,
    quantization: Quantization | None = None,
    device: torch.device | str = "cpu",
) -> PreTrainedModel:
    """A model of a shape of `SHAPES` with random weights, made on the device. In 4 bits its decoder's linear layers are
    quantized as `vtw_demo.load` does; the rest is of `dtype`.

    Raises ValueError for 8 bits.
    """
    if quantization == "8bit":
        raise UserError("Shapes without weights are measured in a precision of their own or in 4 bits, not in 8.")
    config = SHAPES[name].config()
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
    # What ends an answer would end a measurement early.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    if quantization == "4bit":
        _quantize(find_decoder(model), dtype)
    return model


def random_inputs(
    name: str, model: PreTrainedModel, text_tokens: int = 60, tokens_before: int = 30, batch: int = 1
) -> dict[str, torch.Tensor]:
    """Prompts for a model of that shape: so many text tokens, of which `tokens_before` come before the picture.

    Raises ValueError where no text token comes after the picture.
    """
    if not 0 <= tokens_before < text_tokens:
        raise UserError(
            f"Of {text_tokens} text tokens {tokens_before} can't come before the picture: at least one comes after it."
        )
    shape, config = SHAPES[name], model.config
    torch.manual_seed(0)
    highest = min(30_000, config.get_text_config().vocab_size // 2)
    words = torch.randint(3, highest, (1, text_tokens))
    visual = torch.full((1, shape.visual_tokens), getattr(config, shape.placeholder))
    ids = torch.cat([words[:, :tokens_before], visual, words[:, tokens_before:]], dim=1).expand(batch, -1).contiguous()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs |= {key: torch.cat([value] * batch) for key, value in shape.pixels().items()}
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (ids == visual[0, 0]).int()
    return {
        key: value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
        for key, value in inputs.items()
    }


def _quantize(decoder: nn.Module, dtype: torch.dtype) -> None:
    """Replace linear layers by 4-bit ones (NF4, double quantization) of the same weights, one at a time."""
    for module in list(decoder.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, _in_4_bits(child, dtype))


def _in_4_bits(linear: nn.Linear, dtype: torch.dtype) -> Any:
    quantized = bitsandbytes.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=dtype,
        quant_type="nf4",
        compress_statistics=True,
        device="meta",
    )
    weight: Any = bitsandbytes.nn.Params4bit(
        linear.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
    )
    quantized.weight = weight.to(linear.weight.device)
    quantized.bias = linear.bias
    return quantized
