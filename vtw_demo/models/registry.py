"""Models that are known to work, what to know of each before choosing it, and which one to run."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from vtw_demo.errors import UserError
from vtw_demo.models.devices import find_device, free_memory, on_zero_gpu
from vtw_demo.models.hub import in_cache, reachable
from vtw_demo.models.loading import EMBEDDED, EMBEDDED_FOLDER, ModelChoice, check_model
from vtw_demo.models.quantization import quantization_settings
from vtw_demo.models.vision_language_model import VisionLanguageModel

DEFAULT_MODEL = "llava-hf/llava-1.5-7b-hf"
NEEDED_BYTES = 6_000_000_000
NO_QUANTIZATION = "none"
# See README, "Is quality kept?".
EMBEDDED_LAYER = 5

# By where the starting layer comes from.
_REASONS = json.loads(Path(__file__).with_name("starting_layers.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class KnownModel:
    """One model of the registry.

    - `name`: its id on the hub; `title`: what people call it.
    - `parameters`: all of them; `memory_4bit`: bytes of its weights with the decoder layers in 4 bits and the rest in
      bfloat16, from its architecture (`quantization`). Running takes about a tenth and 0.5 GB more.
    - `layers`: L, the number of decoder layers.
    - `visual_tokens`: of one picture, the fewest and the most, over pictures whose sides have 224 to 2,000 pixels and
      differ at most twofold.
    - `layer`: the withdrawal layer K to start from; `layer_source`: where that number comes from.
    - `clip_tokens`: the most visual tokens of a clip; None where the model is asked about pictures only.
    - `gated`: whether the hub wants its terms accepted first.
    """

    name: str
    title: str
    parameters: int
    memory_4bit: int
    layers: int
    visual_tokens: tuple[int, int]
    layer: int
    layer_source: str
    clip_tokens: int | None = None
    gated: bool = False


@dataclass(frozen=True)
class StartingLayer:
    """The withdrawal layer K to start from where no calibration says otherwise, and where it comes from."""

    layer: int
    source: str

    def __str__(self) -> str:
        return f"It starts at K = {self.layer}: {_REASONS[self.source]}."


KNOWN_MODELS = tuple(
    KnownModel(**{**entry, "visual_tokens": tuple(entry["visual_tokens"])})
    for entry in json.loads(Path(__file__).with_name("known_models.json").read_text(encoding="utf-8"))
)


def find_known_model(name: str) -> KnownModel | None:
    """The registry's model of a hub id, in whatever case; None for another one."""
    return next((model for model in KNOWN_MODELS if model.name.lower() == name.lower()), None)


def starting_layer(vlm: VisionLanguageModel) -> StartingLayer:
    """K to start from where no calibration says otherwise: the embedded model's, the registry's, else three quarters
    of the layers."""
    if vlm.name == EMBEDDED:
        return StartingLayer(EMBEDDED_LAYER, "its evaluation")
    known = find_known_model(vlm.name)
    if known and known.layers == vlm.layers:
        return StartingLayer(known.layer, known.layer_source)
    return StartingLayer(max(1, round(0.75 * vlm.layers)), "three quarters of the layers")


def from_environment(name: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """A choice that an environment variable makes; None where it is not set, or empty."""
    return environment.get(f"VTW_{name}", "").strip() or None


def choose_model(
    name: str | None = None,
    quantization: str | None = None,
    device: str | None = None,
    revision: str | None = None,
    quantize_all: bool = False,
) -> ModelChoice:
    """The model that was asked for; for None LLaVA-1.5 7B in 4 bits where it can run here, else the embedded model.

    It can with 6 GB free on a CUDA GPU, and the model in this machine's cache or the hub in reach. `quantization` is
    None where none was asked for, "none" where it was asked that nothing is quantized. The embedded model is run in the
    bits that it is stored in.
    """
    bits: Any = None if quantization == NO_QUANTIZATION else quantization
    if name == EMBEDDED and quantization is None:
        return ModelChoice(name, _stored_bits(), device, revision, quantize_all)
    if name is not None:
        return ModelChoice(name, bits, device, revision, quantize_all)
    embedded = ModelChoice(EMBEDDED, bits if quantization else _stored_bits(), device, quantize_all=quantize_all)
    reason = f"Running {DEFAULT_MODEL}: this machine's GPU has room for it."
    bits = bits if quantization else "4bit"
    wanted = ModelChoice(DEFAULT_MODEL, bits, device, revision, quantize_all, reason, embedded)
    obstacle = _obstacle(wanted)
    return wanted if obstacle is None else wanted.without(obstacle) or wanted


def _stored_bits() -> Any:
    """The quantization in which the embedded model is stored; on ZeroGPU weights aren't held in it."""
    if on_zero_gpu() or not EMBEDDED_FOLDER.is_dir():
        return None
    return quantization_settings(AutoConfig.from_pretrained(EMBEDDED_FOLDER)).get("method")


def _obstacle(wanted: ModelChoice) -> str | None:
    """Why this machine can't run the model that is shown best, in a sentence; None if it can."""
    device = find_device(wanted.device)
    if device.type != "cuda":
        return "it is slow without a CUDA GPU, and none is used here."
    free = free_memory(device)
    if free < NEEDED_BYTES:
        return f"it wants 6 GB free on the GPU, and {free / 1e9:.1f} GB are."
    if not in_cache(wanted.name, wanted.revision) and not reachable(wanted.name):
        return "it is not in this machine's cache, and the hub can't be reached."
    try:
        check_model(wanted)
    except UserError as error:
        return str(error)
    return None
