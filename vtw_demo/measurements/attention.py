"""Attention mass and attention maps: how much of its attention a position gives to each segment of the sequence, and to
each visual token, by layer."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from vtw_demo.errors import UserError
from vtw_demo.models.devices import check_finite
from vtw_demo.withdrawal.architectures import find_attention, find_decoder, find_model
from vtw_demo.withdrawal.attention_capture import captured_rows
from vtw_demo.withdrawal.kept_tokens import keep_tokens
from vtw_demo.withdrawal.segments import PADDING, Segment, segment_ids, visual_token_mask
from vtw_demo.withdrawal.teacher_forcing import check_prompt, check_prompt_end, with_answer
from vtw_demo.withdrawal.withdraw import whole_number, withdraw

_NO_LABEL = PADDING
"""The label of positions whose attention isn't counted: that of padding among segments."""

Shares = tuple[float, ...]
"""The share of attention that each segment gets, in the order of `AttentionMass.segments`."""


@dataclass(frozen=True)
class AttentionMass:
    """The share of attention, mean over heads, that query positions give to each segment, layer by layer.

    - `segments`: names of the segments, in the order of every tuple of shares.
    - `last_prompt`: (layers, segments), the query that predicts answer token 0. None for a layer that doesn't attend: a
      recurrent one, a convolution or an MLP alone.
    - `answer`: (answer tokens, layers, segments); entry i is the position that holds answer token i, the
      query that predicts token i + 1. Empty where no answer was given.
    - `visual_tokens`: how many visual tokens the prompt has.
    - `withdrawal_layer`: K if the visual tokens were withdrawn, else None.

    Shares are from 0 to 1 and sum to 1 in each layer of each query; withdrawn, the image's share is exactly 0
    from layer K on.
    """

    segments: tuple[str, ...]
    last_prompt: tuple[Shares | None, ...]
    answer: tuple[tuple[Shares | None, ...], ...]
    visual_tokens: int
    withdrawal_layer: int | None = None

    @property
    def layers(self) -> int:
        return len(self.last_prompt)

    @property
    def layers_without_attention(self) -> int:
        """How many layers don't attend."""
        return self.last_prompt.count(None)

    @property
    def answer_mean(self) -> tuple[Shares | None, ...]:
        """The mean over the answer tokens, (layers, segments); empty where no answer was given."""
        return mean_shares(self.answer)

    def to_json(self) -> dict[str, Any]:
        """Plain data that `json.dumps` takes: the fields by name, and `answer_mean`."""
        return {**asdict(self), "answer_mean": self.answer_mean}


def mean_shares(queries: Sequence[tuple[Shares | None, ...]]) -> tuple[Shares | None, ...]:
    """The mean over queries, each (layers, segments)."""

    def mean(rows: Sequence[Shares]) -> Shares:
        return tuple(math.fsum(share) / len(rows) for share in zip(*rows, strict=True))

    return tuple(None if rows[0] is None else mean(rows) for rows in zip(*queries, strict=True))


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

    mass = _sum_attention(model, inputs, answer_token_ids, layer, 1 + answer, segments, len(Segment))
    last_prompt, *of_answer = tuple(
        tuple(None if math.isnan(shares[0]) else tuple(shares) for shares in row) for row in mass.tolist()
    )
    return AttentionMass(
        segments=tuple(segment.value for segment in Segment),
        last_prompt=last_prompt,
        answer=tuple(of_answer),
        visual_tokens=int(visual_token_mask(model.config, inputs["input_ids"]).sum()),
        withdrawal_layer=layer,
    )


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """The share of its attention, mean over heads, that one query position gives to each visual token.

    - `weights`, float32, shape (layers, visual tokens), a read-only array (there may be a hundred thousand of them):
      shares of the query's whole attention, 0 to 1, in the order of the prompt; from the withdrawal layer on 0. A
      layer's sum is the image's attention mass. NaN where a layer doesn't attend.
    - `answer_token`: the query is the position of that token of the answer, counted from 0; None: the last prompt
      position.
    - `withdrawal_layer`: K if the visual tokens were withdrawn, else None.
    """

    weights: np.ndarray
    answer_token: int | None
    withdrawal_layer: int | None

    @property
    def layers(self) -> int:
        return int(self.weights.shape[0])

    @property
    def layers_without_attention(self) -> int:
        """How many layers don't attend."""
        return int(np.isnan(self.weights[:, 0]).sum())

    def to_json(self) -> dict[str, Any]:
        number = None if self.answer_token is None else self.answer_token + 1
        weights = [None if math.isnan(row[0]) else row for row in self.weights.tolist()]
        return {**vars(self), "answer_token": number, "weights": weights}


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
    """
    find_model(model)
    check_prompt(inputs)
    answer = torch.as_tensor([] if answer_token_ids is None else answer_token_ids)
    given = answer.shape[-1]
    if answer_token is not None and not 0 <= whole_number(answer_token, "answer_token") < given:
        raise UserError(f"The answer has {given} tokens, counted from 0; there is no token {answer_token}.")
    to_query = answer[..., : 0 if answer_token is None else answer_token + 1]
    count = int(visual_token_mask(model.config, inputs["input_ids"]).sum())
    if not count:
        raise UserError("The prompt has no visual tokens: there is nothing to map.")

    def number(whole: Mapping[str, Any], prompt_length: int) -> torch.Tensor:
        visual = visual_token_mask(model.config, whole["input_ids"])[0]
        return torch.where(visual, visual.cumsum(0) - 1, _NO_LABEL)

    weights = _sum_attention(model, inputs, to_query, layer, 1, number, count)[0].cpu().numpy()
    weights.setflags(write=False)
    return AttentionMap(weights, None if answer_token is None else int(answer_token), layer)


def _sum_attention(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    answer_token_ids: Sequence[int] | torch.Tensor | None,
    layer: int | None,
    row_count: int,
    label: Callable[[Mapping[str, Any], int], torch.Tensor],
    labels: int,
) -> torch.Tensor:
    """The attention that the last `row_count` positions of prompt and answer give to the positions of each label:
    float32, shape (rows, layers, labels), on the model's device; NaN for layers that don't attend.

    `label` gets the model's inputs, prompt and answer, and the prompt's length; gives each position's label, int64,
    shape (sequence,), 0 to `labels` - 1 or `_NO_LABEL`.
    """
    find_model(model)
    check_prompt(inputs)
    if len(inputs["input_ids"]) != 1:
        raise UserError(
            "Attention is measured for one prompt at a time, input_ids of the shape (1, prompt); "
            f"these have {tuple(inputs['input_ids'].shape)}."
        )
    whole = with_answer(model, inputs, answer_token_ids)
    layers = find_decoder(model).layers
    if layer not in (None, len(layers)):
        check_prompt_end(model, inputs)
    all_labels = label(whole, inputs["input_ids"].shape[1])
    kept = keep_tokens(visual_token_mask(model.config, whole["input_ids"]), whole.get("attention_mask"))
    kept_labels = all_labels if kept is None else all_labels[kept.index[0]]
    sums: dict[int, torch.Tensor] = {}

    def add_up(layer_index: int, weights: torch.Tensor) -> None:
        # A layer from K on may use the keys of one below, in which visual ones are masked.
        is_whole = weights.shape[-1] == len(all_labels)
        of_keys = all_labels if layer is None or layer_index < layer or is_whole else kept_labels
        if weights.shape[-1] != len(of_keys):
            raise RuntimeError(
                f"A decoder layer attended to {weights.shape[-1]} positions where {len(of_keys)} were "
                "expected, so it isn't known which of them are visual tokens."
            )
        # What has no label goes to a group of its own, which is cut off.
        groups = torch.where(of_keys == _NO_LABEL, labels, of_keys).expand_as(weights[0])
        sums[layer_index] = weights.new_zeros(row_count, labels + 1).scatter_add_(1, groups, weights[0])[:, :-1]

    with (
        torch.no_grad(),
        captured_rows(model, row_count, add_up),
        nullcontext() if layer is None else withdraw(model, layer, this_thread_only=True),
    ):
        # Nothing is decoded after this pass: a cache and further logits would only take memory. A number would make
        # gemma4 cut the sequence of its last layers.
        last = torch.tensor([-1], device=all_labels.device)
        check_finite(model(**whole, use_cache=False, logits_to_keep=last).logits)
    for index, module in enumerate(layers):
        if find_attention(module) is None:
            sums[index] = next(iter(sums.values())).new_full((row_count, labels), torch.nan)
    if missing := sorted(set(range(len(layers))) - set(sums)):
        raise RuntimeError(
            f"The attention of decoder layers {missing} of this {type(model).__name__} doesn't run through "
            "transformers' attention interface, so it can't be measured."
        )
    return torch.stack([sums[index] for index in range(len(layers))], dim=1)
