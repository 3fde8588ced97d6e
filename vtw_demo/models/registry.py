"""Models that are known to work, what to know of each before choosing it, and which one to run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from vtw_demo.errors import UserError
from vtw_demo.models.devices import find_device, free_memory
from vtw_demo.models.hub import in_cache, reachable
from vtw_demo.models.loading import EMBEDDED, QUANTIZATIONS, check_model
from vtw_demo.models.vision_language_model import Quantization, VisionLanguageModel

DEFAULT_MODEL = "llava-hf/llava-1.5-7b-hf"
DEFAULT_QUANTIZATION: Quantization = "4bit"
NEEDED_BYTES = 6_000_000_000
NO_QUANTIZATION = "none"

LayerSource = Literal["authors' code", "its evaluation", "half of the layers", "three quarters of the layers"]
DEFAULT_LAYER_SHARE = 0.75
# See README, "Is quality kept?".
EMBEDDED_LAYER = 5

_REASONS: dict[LayerSource, str] = {
    "authors' code": "it is what the authors' code of the paper uses for this model",
    "its evaluation": "where this model's evaluation found its answers kept",
    "half of the layers": (
        "it is half of the layers, about where the authors' code withdraws in models of the same kind; not measured "
        "for this one"
    ),
    "three quarters of the layers": "it is three quarters of the layers; not measured for this model",
}


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
    layer_source: LayerSource
    clip_tokens: int | None = None
    gated: bool = False


@dataclass(frozen=True)
class StartingLayer:
    """The withdrawal layer K to start from where no calibration says otherwise, and where it comes from."""

    layer: int
    source: LayerSource

    def __str__(self) -> str:
        return f"It starts at K = {self.layer}: {_REASONS[self.source]}."


# fmt: off
KNOWN_MODELS: tuple[KnownModel, ...] = (
    KnownModel("llava-hf/llava-1.5-7b-hf", "LLaVA-1.5 7B", 7_063_427_072, 4_516_000_000, 32, (576, 576),
               15, "authors' code"),
    KnownModel("llava-hf/llava-1.5-13b-hf", "LLaVA-1.5 13B", 13_351_494_656, 7_873_000_000, 40, (576, 576),
               20, "half of the layers"),
    KnownModel("llava-hf/llava-v1.6-vicuna-7b-hf", "LLaVA-NeXT 7B", 7_063_431_168, 4_516_000_000, 32, (984, 2928),
               16, "half of the layers"),
    KnownModel("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "LLaVA-OneVision 0.5B", 893_675_552, 1_256_000_000, 24,
               (1205, 8765), 18, "three quarters of the layers"),
    KnownModel("llava-hf/llava-onevision-qwen2-7b-ov-hf", "LLaVA-OneVision 7B", 8_030_807_584, 6_377_000_000, 28,
               (1205, 8765), 21, "three quarters of the layers"),
    KnownModel("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen2.5-VL 3B", 3_754_622_976, 3_391_000_000, 36, (64, 5041),
               27, "three quarters of the layers", clip_tokens=6144),
    KnownModel("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen2.5-VL 7B", 8_292_166_656, 6_900_000_000, 28, (64, 5041),
               21, "three quarters of the layers", clip_tokens=6144),
    KnownModel("Qwen/Qwen3-VL-2B-Instruct", "Qwen3-VL 2B", 2_127_532_032, 2_163_000_000, 28, (64, 3844),
               21, "three quarters of the layers", clip_tokens=6144),
    KnownModel("Qwen/Qwen3-VL-4B-Instruct", "Qwen3-VL 4B", 4_437_815_808, 3_483_000_000, 36, (64, 3844),
               27, "three quarters of the layers", clip_tokens=6144),
    KnownModel("OpenGVLab/InternVL3-1B-hf", "InternVL3 1B", 938_119_296, 1_345_000_000, 24, (256, 3328),
               18, "three quarters of the layers"),
    KnownModel("OpenGVLab/InternVL3-2B-hf", "InternVL3 2B", 2_088_883_712, 2_233_000_000, 28, (256, 3328),
               21, "three quarters of the layers"),
    KnownModel("OpenGVLab/InternVL3-8B-hf", "InternVL3 8B", 7_944_300_032, 6_204_000_000, 28, (256, 3328),
               21, "three quarters of the layers"),
    KnownModel("HuggingFaceTB/SmolVLM2-256M-Video-Instruct", "SmolVLM2 256M", 256_484_928, 355_000_000, 30, (832, 1088),
               22, "three quarters of the layers"),
    KnownModel("HuggingFaceTB/SmolVLM2-500M-Video-Instruct", "SmolVLM2 500M", 507_482_304, 548_000_000, 32, (832, 1088),
               24, "three quarters of the layers"),
    KnownModel("HuggingFaceTB/SmolVLM2-2.2B-Instruct", "SmolVLM2 2.2B", 2_246_784_880, 2_103_000_000, 24, (729, 1377),
               18, "three quarters of the layers"),
    KnownModel("google/gemma-3-4b-it", "Gemma 3 4B", 4_300_079_472, 3_838_000_000, 34, (256, 256),
               26, "three quarters of the layers", gated=True),
    KnownModel("LanguageBind/Video-LLaVA-7B-hf", "Video-LLaVA 7B", 7_366_279_168, 5_121_000_000, 32, (256, 256),
               16, "authors' code", clip_tokens=2056),
)
# fmt: on


def find_known_model(name: str) -> KnownModel | None:
    """The registry's model of a hub id, in whatever case; None for another one."""
    return next((model for model in KNOWN_MODELS if model.name.lower() == name.lower()), None)


def starting_layer(vlm: VisionLanguageModel) -> StartingLayer:
    """K to start from where no calibration says otherwise: the embedded model's, the registry's, else three quarters
    of the layers."""
    if vlm.name == EMBEDDED:
        return StartingLayer(EMBEDDED_LAYER, "its evaluation")
    known = find_known_model(vlm.name)
    if known is not None and known.layers == vlm.layers:
        return StartingLayer(known.layer, known.layer_source)
    return StartingLayer(max(1, round(DEFAULT_LAYER_SHARE * vlm.layers)), "three quarters of the layers")


@dataclass(frozen=True)
class ModelChoice:
    """The arguments of `load`, and why these, in a sentence; "" where they were asked for.

    `otherwise`: what runs if this can't be loaded after all; None where it was asked for.

    Raises UserError for an unknown quantization.
    """

    name: str = EMBEDDED
    quantization: Quantization | None = None
    device: str | None = None
    revision: str | None = None
    quantize_all: bool = False
    reason: str = ""
    otherwise: ModelChoice | None = None

    def __post_init__(self) -> None:
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            raise UserError(
                f"Unknown quantization {self.quantization!r}: choose {', '.join(QUANTIZATIONS)} or {NO_QUANTIZATION}."
            )

    def arguments(self) -> dict[str, Any]:
        """Those of `load` and `check_model`, by name."""
        return {
            "name": self.name,
            "quantization": self.quantization,
            "device": self.device,
            "revision": self.revision,
            "quantize_all": self.quantize_all,
        }

    def without(self, obstacle: str) -> ModelChoice | None:
        """What runs instead where `obstacle`, a sentence, keeps this from running; None where this was asked for."""
        if self.otherwise is None:
            return None
        why = " ".join(obstacle.split())
        return replace(self.otherwise, reason=f"Running the {self.otherwise.name} model, not {self.name}: {why}")


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
    None where none was asked for, "none" where it was asked that nothing is quantized.

    Raises UserError for an unknown quantization, and a device that isn't there.
    """
    bits: Any = None if quantization == NO_QUANTIZATION else quantization
    if name is not None:
        return ModelChoice(name, bits, device, revision, quantize_all)
    wanted = ModelChoice(
        DEFAULT_MODEL,
        bits if quantization else DEFAULT_QUANTIZATION,
        device,
        revision,
        quantize_all,
        reason=f"Running {DEFAULT_MODEL}: this machine's GPU has room for it.",
        otherwise=ModelChoice(EMBEDDED, bits, device, quantize_all=quantize_all),
    )
    obstacle = _obstacle(wanted)
    return wanted if obstacle is None else wanted.without(obstacle) or wanted


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
        check_model(**wanted.arguments())
    except UserError as error:
        return str(error)
    return None
