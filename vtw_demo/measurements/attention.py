"""Attention mass: how much of its attention a position gives to each segment of the sequence, by layer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from vtw_demo.measurements.attention_sums import sum_attention
from vtw_demo.withdrawal.segments import Segment, segment_ids, visual_token_mask

Shares = tuple[float, ...]
"""The share of attention that each segment gets, in the order of `AttentionMass.segments`."""


@dataclass(frozen=True)
class AttentionMass:
    """The share of attention, mean over heads, that query positions give to each segment, layer by layer.

    - `segments`: names of the segments, in the order of every tuple of shares.
    - `last_prompt`: (layers, segments), the query that predicts answer token 0.
    - `answer`: (answer tokens, layers, segments); entry i is the position that holds answer token i, the
      query that predicts token i + 1. Empty where no answer was given.
    - `visual_tokens`: how many visual tokens the prompt has.
    - `withdrawal_layer`: K if the visual tokens were withdrawn, else None.

    Shares are from 0 to 1 and sum to 1 in each layer of each query; withdrawn, the image's share is exactly 0
    from layer K on.
    """

    segments: tuple[str, ...]
    last_prompt: tuple[Shares, ...]
    answer: tuple[tuple[Shares, ...], ...]
    visual_tokens: int
    withdrawal_layer: int | None = None

    @property
    def layers(self) -> int:
        """How many decoder layers there are."""
        return len(self.last_prompt)

    @property
    def answer_mean(self) -> tuple[Shares, ...]:
        """The mean over the answer tokens, (layers, segments); empty where no answer was given."""
        return tuple(
            tuple(math.fsum(share) / len(self.answer) for share in zip(*shares, strict=True))
            for shares in zip(*self.answer, strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data that `json.dumps` takes: the fields by name, and `answer_mean`."""
        return {**asdict(self), "answer_mean": self.answer_mean}


def measure_attention(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    answer_token_ids: Sequence[int] | torch.Tensor | None = None,
    layer: int | None = None,
) -> AttentionMass:
    """Measure the attention mass of the last prompt position and of each answer token's position.

    - `model`: a vision-language model that `withdraw` supports; it is left as it was.
    - `inputs`: what its processor made of one prompt: `input_ids`, int64, shape (1, prompt), and what goes
      with them (`attention_mask`, `pixel_values`, ...), on the model's device. May be padded on the left.
    - `answer_token_ids`: the answer's token ids, without the prompt's. Prompt and answer go through the model
      in a single forward pass, as if the model had generated them. None or empty measures the prompt alone.
    - `layer`: the withdrawal layer K; None measures without withdrawal.

    Row i of the answer is the position that holds answer token i, as the query that predicts token i + 1. The
    query that predicts answer token 0 is the last prompt position. A query attends to its own position too,
    which counts to the segment that it is in.

    Weights are computed in float32 whatever the model's precision. Passes in several threads take turns.

    Raises
    - ValueError for a batch of more than one prompt, a prompt padded on the right, answer token ids that
      aren't one sequence or contain a placeholder of an image, a prompt that ends with a visual token when
      these are withdrawn (its last position is withdrawn too), and a model whose attention isn't plain
      softmax of scaled products,
    - RuntimeError for a model whose attention doesn't run through transformers' attention interface,
    - what `withdraw` raises.
    """
    answer = 0 if answer_token_ids is None else torch.as_tensor(answer_token_ids).shape[-1]

    def segments(whole: Mapping[str, Any], prompt_length: int) -> torch.Tensor:
        return segment_ids(model.config, whole["input_ids"], whole.get("attention_mask"), prompt_length)[0]

    mass = sum_attention(model, inputs, answer_token_ids, layer, 1 + answer, segments, len(Segment))
    last_prompt, *of_answer = tuple(tuple(tuple(shares) for shares in row) for row in mass.tolist())
    return AttentionMass(
        segments=tuple(segment.value for segment in Segment),
        last_prompt=last_prompt,
        answer=tuple(of_answer),
        visual_tokens=int(visual_token_mask(model.config, inputs["input_ids"]).sum()),
        withdrawal_layer=layer,
    )
