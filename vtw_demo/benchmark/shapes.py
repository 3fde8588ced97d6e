"""Real architectures with random weights: speed and memory don't depend on what the weights say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import bitsandbytes
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, BatchFeature, PreTrainedConfig, PreTrainedModel

from vtw_demo.errors import UserError
from vtw_demo.files import data_beside
from vtw_demo.models.loading import EMBEDDED_FOLDER, Quantization
from vtw_demo.withdrawal.architectures import find_decoder


@dataclass(frozen=True)
class Shape:
    """A model's architecture, and what one prompt's picture or clip becomes."""

    architecture: Mapping[str, Any] | None  # None for the embedded model, where it lies beside the weights
    visual_tokens: int
    pixels: Mapping[str, Sequence[int]]  # the shapes of their tensors
    sizes: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)  # what the model is told of them
    placeholder: str = "image_token_id"  # the name of the configuration's token id that stands for visual tokens

    def config(self) -> PreTrainedConfig:
        if self.architecture is None:
            config = AutoConfig.from_pretrained(EMBEDDED_FOLDER)
            vars(config).pop("quantization_config", None)  # of its stored weights
            return config
        return AutoConfig.for_model(**self.architecture)


SHAPES = {name: Shape(**fields) for name, fields in data_beside(__file__, "shapes.json").items()}


def random_model(
    name: str,
    dtype: torch.dtype = torch.float32,
    quantization: Quantization | None = None,
    device: torch.device | str = "cpu",
) -> PreTrainedModel:
    """A model of a shape of `SHAPES` with random weights, made on the device. In 4 bits its decoder's linear layers are
    quantized as `vtw_demo.load` does; the rest is of `dtype`."""
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
        for module in list(find_decoder(model).modules()):
            for of_module, child in list(module.named_children()):
                if type(child) is nn.Linear:
                    setattr(module, of_module, _in_4_bits(child, dtype))
    return model


def random_inputs(
    name: str, model: PreTrainedModel, text_tokens: int = 60, tokens_before: int = 30, batch: int = 1
) -> dict[str, torch.Tensor]:
    """Prompts for a model of that shape: so many text tokens, of which `tokens_before` come before the picture."""
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
    inputs |= {key: torch.cat([torch.randn(*size)] * batch) for key, size in shape.pixels.items()}
    inputs |= {key: torch.tensor([*sizes] * batch) for key, sizes in shape.sizes.items()}
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (ids == visual[0, 0]).int()
    return BatchFeature(inputs).to(model.device, model.dtype).data


def _in_4_bits(linear: nn.Linear, dtype: torch.dtype) -> Any:
    """The same weights in NF4 with double quantization."""
    kind: dict[str, Any] = {"quant_type": "nf4", "compress_statistics": True}
    size, has_bias = (linear.in_features, linear.out_features), linear.bias is not None
    quantized = bitsandbytes.nn.Linear4bit(*size, has_bias, compute_dtype=dtype, device="meta", **kind)
    weight: Any = bitsandbytes.nn.Params4bit(linear.weight.data, requires_grad=False, **kind)
    quantized.weight = weight.to(linear.weight.device)
    quantized.bias = linear.bias
    return quantized
