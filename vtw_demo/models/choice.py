"""Which model to run: what was asked for, or what this machine can show best."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vtw_demo.errors import UserError
from vtw_demo.models.devices import find_device, free_memory
from vtw_demo.models.hub import in_cache, reachable
from vtw_demo.models.loading import EMBEDDED, QUANTIZATIONS, check_model
from vtw_demo.models.vision_language_model import Quantization

DEFAULT_MODEL = "llava-hf/llava-1.5-7b-hf"
DEFAULT_QUANTIZATION: Quantization = "4bit"
NEEDED_BYTES = 6_000_000_000
NO_QUANTIZATION = "none"


@dataclass(frozen=True)
class ModelChoice:
    """The arguments of `load`, and why these, in a sentence; "" where they were asked for.

    `otherwise`: what runs if this can't be loaded after all; None where it was asked for.

    Raises ValueError for an unknown quantization.
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
            raise ValueError(
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

    Raises ValueError for an unknown quantization, and a device that isn't there.
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
