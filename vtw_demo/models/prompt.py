"""One question about one picture or clip, as a model is asked it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from vtw_demo.models.video import Shown
from vtw_demo.withdrawal.segments import Segment


@dataclass(frozen=True, eq=False)
class Prompt:
    """Made once for a query by `VisionLanguageModel.prompt`, and handed to every measurement of it.

    - `shown`, `question`: the picture or clip, and what is asked about it.
    - `inputs`: what the model's processor made of them, on one device: `input_ids` and `attention_mask`, int64, shape
      (1, sequence), pixels in the processor's own shape, and what else goes with them.
    - `segments`: the segment of each position, int64, shape (sequence,), as `segment_ids` numbers them.
    """

    shown: Shown
    question: str
    inputs: Mapping[str, torch.Tensor]
    segments: torch.Tensor

    @property
    def length(self) -> int:
        """How many positions the prompt has."""
        return len(self.segments)

    @property
    def visual_tokens(self) -> int:
        """How many of them are visual tokens."""
        return int((self.segments == Segment.IMAGE.number).sum())

    def to(self, device: torch.device | str) -> Prompt:
        """The same with its inputs on a device."""
        inputs = {name: value.to(device) for name, value in self.inputs.items()}
        return replace(self, inputs=inputs, segments=self.segments.to(device))
