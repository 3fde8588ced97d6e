"""What a model is, from its configuration alone, before any of its weights is read; and in how many bits they are."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.quantizers import AutoHfQuantizer

from vtw_demo.errors import UserError
from vtw_demo.withdrawal.architectures import check_family, find_decoder

# Bits of a weight: NF4 with a constant of 8 bits for 64 weights and one of 32 bits for 256 of these; int8 with one of
# 32 bits a row, of which there are thousands of weights.
BITS = {"4bit": 4 + 8 / 64 + 32 / (64 * 256), "8bit": 8.0}


@dataclass(frozen=True)
class Architecture:
    """A model without weights."""

    parameters: int  # all of them
    quantizable: int  # those that quantization touches; of a checkpoint that is quantized already, none if unpacked
    layers: int  # L, of the decoder
    kept: tuple[str, ...]  # names of the modules that quantization leaves as they are
    method: str | None = None  # of a checkpoint that is quantized already (`quantization_settings`)
    bits: float = 0.0  # that each of its quantizable parameters takes

    def weight_bytes(self, quantization: str | None, dtype: torch.dtype) -> int:
        """What the weights take on a device, those that aren't quantized as `dtype`."""
        bits = BITS.get(quantization or "", 8 * dtype.itemsize) if self.method is None else self.bits
        return round(self.quantizable * bits / 8) + (self.parameters - self.quantizable) * dtype.itemsize


def describe(config: PreTrainedConfig, quantize_all: bool = False, device: torch.device | None = None) -> Architecture:
    """What a configuration makes on a device; with `quantize_all` quantization leaves out a head that shares the
    embedding's weights alone. Raises ImportError where a package is missing by which the checkpoint is quantized."""
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
    parameters = sum(parameter.numel() for parameter in model.parameters())
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    sizes = {name: module.weight.numel() for name, module in linear.items()}
    shared = model.get_input_embeddings().weight
    tied = tuple(name for name, module in linear.items() if module.weight is shared)
    kept = tied if quantize_all else _outside(model, layers)
    if not (settings := quantization_settings(config)):
        quantizable = sum(size for name, size in sizes.items() if not _is_in(name, kept))
        return Architecture(parameters, quantizable, len(layers), kept)
    quantizer: Any = AutoHfQuantizer.from_config(settings, pre_quantized=True)
    quantizer.validate_environment(device_map={"": device})
    quantizer.preprocess_model(model, device_map={"": device}, checkpoint_files=[])
    # What unpacks the weights when they are read, or used first, leaves the modules as they are.
    replaced = [name for name in sizes if type(model.get_submodule(name)) is not type(linear[name])]
    quantized, method = sum(sizes[name] for name in replaced), settings["method"]
    held = sum(sum(_own_bytes(model.get_submodule(name))) for name in replaced)
    bits = BITS.get(method, 8 * held / max(1, quantized))  # bitsandbytes packs them as they are read
    if method == "4bit" and not settings["bnb_4bit_use_double_quant"]:
        bits = 4 + 32 / 64
    return Architecture(parameters, quantized, len(layers), kept, method, bits)


def quantization_settings(config: PreTrainedConfig) -> dict[str, Any]:
    """What a configuration says of how its checkpoint is quantized, and as `method` "4bit" or "8bit" for bitsandbytes,
    else the method's name; nothing where it isn't."""
    written = getattr(config, "quantization_config", getattr(config.get_text_config(), "quantization_config", None))
    settings = {} if written is None else written if isinstance(written, dict) else written.to_dict()
    named = settings.get("quant_method")
    method = next((bits for bits in BITS if settings.get(f"load_in_{bits}")), getattr(named, "value", named))
    return settings and {**settings, "method": method}


def quantized_bits(model: PreTrainedModel) -> tuple[dict[str, int], str]:
    """How many bits a weight has in each linear module that is held in fewer than 16, by name, from what is in memory;
    and where these are: "" for those of the decoder layers, " throughout" for all but a head that shares the
    embedding's weights, else " in part"."""
    inside = {id(module) for module in find_decoder(model).layers.modules()}
    shared = model.get_input_embeddings().weight
    found, of_decoder, everywhere = {}, set(), set()
    for name, module in model.named_modules():
        weights = getattr(module, "in_features", 0) * getattr(module, "out_features", 0)
        if not weights or not (held := max(_own_bytes(module), default=0)):
            continue
        of_decoder |= {name} if id(module) in inside else set()
        everywhere |= {name} if getattr(module, "weight", None) is not shared else set()
        if (bits := round(8 * held / weights)) < 16:
            found[name] = bits
    return found, "" if found.keys() == of_decoder else " throughout" if found.keys() == everywhere else " in part"


def _own_bytes(module: nn.Module) -> list[int]:
    return [tensor.nbytes for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))]


def _is_in(name: str, outer: Iterable[str]) -> bool:
    return any(f"{name}.".startswith(f"{module}.") for module in outer)


def _outside(model: PreTrainedModel, layers: nn.ModuleList) -> tuple[str, ...]:
    """The largest modules that hold no decoder layer and are in none."""
    inside = {id(module) for module in layers.modules()}
    names: list[str] = []
    for name, module in model.named_modules():
        if not _is_in(name, names) and not any(id(part) in inside for part in module.modules()):
            names.append(name)
    return tuple(names)
