"""One question about one picture or clip, as a model is asked it; or a further one, with what was said before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from vtw_demo.models.video import Shown
from vtw_demo.withdrawal.segments import Segment
from vtw_demo.withdrawal.teacher_forcing import TOKEN_TYPES
from vtw_demo.withdrawal.token_pruning import is_visual_input

BY_TOKEN = ("input_ids", "attention_mask", *TOKEN_TYPES)


@dataclass(frozen=True, eq=False)
class Prompt:
    """Made once for a query by `VisionLanguageModel.prompt`, and handed to every measurement of it."""

    shown: Shown
    question: str
    # What the model's processor made of them, on one device: `input_ids` and `attention_mask`, int64, shape (1,
    # sequence), pixels in the processor's own shape, and what else goes with them.
    inputs: Mapping[str, torch.Tensor]
    segments: torch.Tensor  # of each position, int64, shape (sequence,), as `segment_ids` numbers them
    held: int = 0  # how many positions the KV cache of the answer before holds; 0: the conversation is read anew
    _encoded: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def length(self) -> int:
        return len(self.segments)

    @property
    def visual_tokens(self) -> int:
        return int((self.segments == Segment.IMAGE.number).sum())

    def keep_encoded(self, encoded: Mapping[str, Any]) -> None:
        """Remember what the model's vision encoder made of `shown`, as transformers hands it to the decoder."""
        for kind, output in encoded.items():
            # What the encoder's layers gave on the way is many times as large, and not needed.
            left = {"hidden_states", "attentions"} | ({"last_hidden_state"} if "pooler_output" in output else set())
            self._encoded[kind] = type(output)(**{name: of for name, of in output.items() if name not in left})

    @property
    def encoded_inputs(self) -> Mapping[str, Any]:
        """`inputs`, with what is remembered in place of the pixels; as they are where nothing is."""
        if not self._encoded:
            return self.inputs
        others = {name: value for name, value in self.inputs.items() if not is_visual_input(name)}
        return {**others, "mm_encoder_outputs": dict(self._encoded)}

    @property
    def held_inputs(self) -> Mapping[str, Any]:
        """`encoded_inputs` of the positions that are held, as the passes read them that filled the KV cache."""
        inputs = self.encoded_inputs
        return {name: value[:, : self.held] if name in BY_TOKEN else value for name, value in inputs.items()}

    @property
    def further_inputs(self) -> dict[str, Any]:
        """What goes on with that cache: all tokens, of which `generate` takes those that aren't held; no picture."""
        return {name: self.inputs[name] for name in BY_TOKEN if name in self.inputs}

    def to(self, device: torch.device | str) -> Prompt:
        """The same with its inputs on a device."""
        inputs = {name: value.to(device) for name, value in self.inputs.items()}
        return replace(self, inputs=inputs, segments=self.segments.to(device))
