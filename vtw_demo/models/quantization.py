"""What a model is, from its configuration alone, before any of its weights is read."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from vtw_demo.errors import UserError
from vtw_demo.withdrawal.architectures import check_family, find_decoder

# Bits of a weight: NF4 with a constant of 8 bits for 64 weights and one of 32 bits for 256 of these; int8 with one of
# 32 bits a row, of which there are thousands of weights.
BITS = {"4bit": 4 + 8 / 64 + 32 / (64 * 256), "8bit": 8.0}


@dataclass(frozen=True)
class Architecture:
    """A model without weights.

    - `parameters`: all of them; `quantizable`: those that quantization touches.
    - `layers`: L, the number of decoder layers.
    - `kept`: names of the modules that quantization leaves as they are.
    """

    parameters: int
    quantizable: int
    layers: int
    kept: tuple[str, ...]

    def weight_bytes(self, quantization: str | None, dtype: torch.dtype) -> int:
        """What the weights take on a device, those that aren't quantized as `dtype`."""
        if quantization is None:
            return self.parameters * dtype.itemsize
        return round(self.quantizable * BITS[quantization] / 8) + (self.parameters - self.quantizable) * dtype.itemsize

    def skipped_modules(self) -> list[str]:
        """`kept` as the patterns that transformers wants them in."""
        return [re.escape(name) for name in self.kept]


def describe(config: PreTrainedConfig, quantize_all: bool = False) -> Architecture:
    """What a configuration makes; with `quantize_all` quantization leaves out a head that shares the embedding's
    weights alone."""
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise UserError(
            f"{config.model_type!r} is no vision-language model that answers in text. Choose one that is, such as a "
            "LLaVA."
        )
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    model.tie_weights()
    check_family(model)
    layers = find_decoder(model).layers
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    everywhere = tuple(name for name, module in model.named_modules() if tied and module is head)
    kept = everywhere if quantize_all else _outside(model, layers)
    quantizable = [
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not _is_in(name, kept)
    ]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Architecture(parameters, sum(quantizable), len(layers), kept)


def _is_in(name: str, outer: Iterable[str]) -> bool:
    """Whether a module is one of these or a part of one."""
    return any(f"{name}.".startswith(f"{module}.") for module in outer)


def _outside(model: PreTrainedModel, layers: nn.ModuleList) -> tuple[str, ...]:
    """The largest modules that hold no decoder layer and are in none."""
    inside = {id(module) for module in layers.modules()}
    names: list[str] = []
    for name, module in model.named_modules():
        if not _is_in(name, names) and not any(id(part) in inside for part in module.modules()):
            names.append(name)
    return tuple(names)
