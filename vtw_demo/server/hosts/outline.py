"""A model that is loaded in another process: all that the page asks of it, without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from vtw_demo.models.vision_language_model import VisionLanguageModel


@dataclass(frozen=True)
class Facts:
    """What is sent of a model in place of it."""

    name: str
    revision: str
    note: str
    config: Any
    dtype: torch.dtype
    processor: Any
    held: tuple[dict[str, int], str]
    device: torch.device
    memory_bytes: int
    sharing: int

    @classmethod
    def of(cls, vlm: VisionLanguageModel) -> Facts:
        model, held = vlm.model, vlm._held
        texts = vlm.name, vlm.revision, vlm.note
        return cls(*texts, model.config, model.dtype, vlm.processor, held, vlm.device, vlm.memory_bytes, vlm.sharing)

    def outline(self) -> Outline:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(self.config, dtype=self.dtype)
        about = self.name, model.eval(), self.processor, self.revision, self.note
        return Outline(*about, sharing=self.sharing, facts=self)


@dataclass(frozen=True)
class Outline(VisionLanguageModel):
    """Its prompts wait in this machine's memory; nothing else of it can be computed here."""

    facts: Facts | None = None

    @property
    def _known(self) -> Facts:
        assert self.facts is not None
        return self.facts

    @property
    def device(self) -> torch.device:
        return self._known.device

    @property
    def _inputs_device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def memory_bytes(self) -> int:
        return self._known.memory_bytes

    @property
    def _dtype(self) -> str:
        return str(self._known.dtype).removeprefix("torch.")

    @property
    def _held(self) -> tuple[dict[str, int], str]:  # type: ignore[override]
        return self._known.held
