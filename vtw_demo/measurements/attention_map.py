"""Attention maps: how much of its attention a position gives to each visual token, by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from vtw_demo.errors import UserError
from vtw_demo.measurements.attention import NO_LABEL, sum_attention
from vtw_demo.withdrawal.segments import visual_token_mask
from vtw_demo.withdrawal.teacher_forcing import check_prompt


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """The share of its attention, mean over heads, that one query position gives to each visual token.

    - `weights`, float32, shape (layers, visual tokens), a read-only array (there may be a hundred thousand of them):
      shares of the query's whole attention, 0 to 1, in the order of the prompt; from the withdrawal layer on 0. A
      layer's sum is the image's attention mass.
    - `answer_token`: the query is the position of that token of the answer, counted from 0; None: the last prompt
      position.
    - `withdrawal_layer`: K if the visual tokens were withdrawn, else None.
    """

    weights: np.ndarray
    answer_token: int | None
    withdrawal_layer: int | None

    @property
    def layers(self) -> int:
        """How many decoder layers there are."""
        return int(self.weights.shape[0])

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {**vars(self), "weights": self.weights.tolist()}


def measure_attention_map(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    answer_token_ids: Sequence[int] | torch.Tensor | None = None,
    answer_token: int | None = None,
    layer: int | None = None,
) -> AttentionMap:
    """Measure how much attention one position gives to each visual token.

    - `model`, `inputs`, `answer_token_ids` and `layer` as in `vtw_demo.measure_attention`.
    - `answer_token`: the token of the answer whose position is the query, counted from 0; it predicts the token after
      it. None: the last prompt position, which predicts answer token 0.

    Prompt and answer, up to the query, go through the model in a single forward pass; what comes after a query can't
    change what it attends to. Weights are computed in float32 whatever the model's precision.

    Raises
    - ValueError for an answer token that isn't in the answer, and for a prompt without visual tokens,
    - what `vtw_demo.measure_attention` raises.
    """
    check_prompt(inputs)
    answer = torch.as_tensor([] if answer_token_ids is None else answer_token_ids)
    given = answer.shape[-1]
    if answer_token is not None and not 0 <= answer_token < given:
        raise UserError(f"The answer has {given} tokens, counted from 0; there is no token {answer_token}.")
    to_query = answer[..., : 0 if answer_token is None else answer_token + 1]
    count = int(visual_token_mask(model.config, inputs["input_ids"]).sum())
    if not count:
        raise UserError("The prompt has no visual tokens: there is nothing to map.")

    def number(whole: Mapping[str, Any], prompt_length: int) -> torch.Tensor:
        visual = visual_token_mask(model.config, whole["input_ids"])[0]
        return torch.where(visual, visual.cumsum(0) - 1, NO_LABEL)

    weights = sum_attention(model, inputs, to_query, layer, 1, number, count)[0].cpu().numpy()
    weights.setflags(write=False)
    return AttentionMap(weights, answer_token, layer)
