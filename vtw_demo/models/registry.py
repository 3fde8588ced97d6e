"""Models that are known to work, what to know of each before choosing it, and which one to run."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoConfig

from vtw_demo.errors import UserError
from vtw_demo.files import data_beside
from vtw_demo.models import hardware
from vtw_demo.models.devices import find_device, on_zero_gpu
from vtw_demo.models.loading import EMBEDDED, EMBEDDED_FOLDER, ModelChoice, check_model
from vtw_demo.models.quantization import quantization_settings
from vtw_demo.models.vision_language_model import Quantization, VisionLanguageModel

NO_QUANTIZATION = "none"
# By its evaluation: see evaluation/README.md.
EMBEDDED_LAYER = 8

# By where the starting layer comes from.
_REASONS = data_beside(__file__, "starting_layers.json")


@dataclass(frozen=True)
class KnownModel:
    name: str  # its id on the hub
    title: str  # what people call it
    license: str  # as the hub names it
    parameters: int  # all of them
    # Bytes of its weights with the decoder layers in 4 bits and the rest in bfloat16, from its architecture
    # (`quantization`). Running takes about a tenth and 0.5 GB more.
    memory_4bit: int
    # Bytes of the hub's weights: its parameters in the type that they are stored in there. Qwen3.5's files are 3 %
    # larger, since they also hold what predicts several tokens at once, and Gemma 4's 1 %.
    download: int
    layers: int  # L, of the decoder
    visual_tokens: tuple[int, int]  # of a picture, fewest and most: sides of 224 to 2,000 pixels, at most twofold apart
    layer: int  # the withdrawal layer K to start from
    layer_source: str  # where that number comes from
    clip_tokens: int | None = None  # the most visual tokens of a clip; None where it is asked about pictures only
    gated: bool = False  # whether the hub wants its terms accepted first


@dataclass(frozen=True)
class StartingLayer:
    """The withdrawal layer K to start from where no calibration says otherwise, and where it comes from."""

    layer: int
    source: str

    def __str__(self) -> str:
        return f"It starts at K = {self.layer}: {_REASONS[self.source]}."


KNOWN_MODELS = tuple(
    KnownModel(**{**entry, "visual_tokens": tuple(entry["visual_tokens"])})
    for entry in data_beside(__file__, "known_models.json")
)


@dataclass(frozen=True)
class MachineModel:
    """A row of the table: on a `device` with so many gigabytes, the model `name` in that quantization, and why."""

    device: str
    gigabytes: float
    name: str
    quantization: Quantization | None
    reason: str


# Of each device the largest first.
MACHINE_MODELS = tuple(MachineModel(**row) for row in data_beside(__file__, "machine_models.json"))


def find_known_model(name: str) -> KnownModel | None:
    """The registry's model of a hub id, in whatever case; None for another one."""
    return next((model for model in KNOWN_MODELS if model.name.lower() == name.lower()), None)


def starting_layer(vlm: VisionLanguageModel) -> StartingLayer:
    """K where no calibration says otherwise: the embedded model's, the registry's, else 3/4 of the layers."""
    if vlm.name == EMBEDDED:
        return StartingLayer(EMBEDDED_LAYER, "its evaluation")
    known = find_known_model(vlm.name)
    if known and known.layers == vlm.layers:
        return StartingLayer(known.layer, known.layer_source)
    return StartingLayer(max(1, round(0.75 * vlm.layers)), "three quarters of the layers")


def from_environment(name: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """A choice that an environment variable makes; None where it is not set, or empty."""
    return environment.get(f"VTW_{name}", "").strip() or None


def suggested(device: str, memory: int) -> MachineModel | None:
    """The model to show on a machine with such a device and so many bytes, by the table; None with too few."""
    return next((row for row in MACHINE_MODELS if row.device == device and row.gigabytes * 1e9 <= memory), None)


def machine_model(device: str | None) -> tuple[torch.device, int, MachineModel | None]:
    """The device that is used here, its bytes of memory that count (what is free, of a Mac all), and what suits it."""
    found = find_device(device)
    memory = hardware.all_memory() if found.type == "mps" else hardware.free_memory(found)
    return found, memory, suggested(found.type, memory)


def choose_model(
    name: str | None = None,
    quantization: str | None = None,
    device: str | None = None,
    revision: str | None = None,
    quantize_all: bool = False,
) -> ModelChoice:
    """The model that was asked for; for None the one that `machine_models.json` has for this machine, or the embedded
    model where there is none, or it is neither in the cache nor on the hub, or can't be loaded.

    `quantization` is None where none was asked for, "none" where it was asked that nothing is quantized. The embedded
    model is run in the bits that it is stored in.
    """
    bits: Any = None if quantization == NO_QUANTIZATION else quantization
    if name == EMBEDDED and quantization is None:
        return ModelChoice(name, _stored_bits(device), device, revision, quantize_all)
    if name is not None:
        return ModelChoice(name, bits, device, revision, quantize_all)
    embedded = ModelChoice(EMBEDDED, bits if quantization else _stored_bits(device), device, quantize_all=quantize_all)
    found, memory, row = machine_model(device)
    if row is None:
        why = f"no other is suggested for the device {found}: name one with --model."
        for smallest in [row for row in MACHINE_MODELS if row.device == found.type][-1:]:
            why = f"{smallest.name} wants {smallest.gigabytes} GB of memory, and there are {memory / 1e9:.1f}."
        return replace(embedded, reason=f"Running the embedded model: {why}")
    bits = bits if quantization else row.quantization
    reason = f"Running {row.name}: {row.reason}."
    wanted = ModelChoice(row.name, bits, device, revision, quantize_all, reason)
    try:
        check_model(wanted)
    except UserError as error:
        return replace(embedded, reason=f"Running the embedded model, not {row.name}: {' '.join(str(error).split())}")
    return wanted


def _stored_bits(device: str | None) -> Any:
    """The quantization in which the embedded model is stored; on ZeroGPU and Apple's weights aren't held in it."""
    if on_zero_gpu() or not EMBEDDED_FOLDER.is_dir() or find_device(device).type == "mps":
        return None
    return quantization_settings(AutoConfig.from_pretrained(EMBEDDED_FOLDER)).get("method")
