"""The attention that positions give to groups of others, in one pass of its own."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from transformers import PreTrainedModel

from vtw_demo.errors import UserError
from vtw_demo.withdrawal.architectures import find_decoder
from vtw_demo.withdrawal.attention_capture import captured_rows
from vtw_demo.withdrawal.kept_tokens import keep_tokens
from vtw_demo.withdrawal.segments import PADDING, visual_token_mask
from vtw_demo.withdrawal.teacher_forcing import check_prompt, check_prompt_end, with_answer
from vtw_demo.withdrawal.withdraw import withdraw

NO_LABEL = PADDING
"""The label of positions whose attention isn't counted: that of padding among segments."""


def sum_attention(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    answer_token_ids: Sequence[int] | torch.Tensor | None,
    layer: int | None,
    row_count: int,
    label: Callable[[Mapping[str, Any], int], torch.Tensor],
    labels: int,
) -> torch.Tensor:
    """The attention that the last positions of prompt and answer give to the positions of each label.

    - `model`, `inputs`, `answer_token_ids` and `layer` as in `vtw_demo.measure_attention`.
    - `row_count`: how many positions at the end of prompt and answer are asked about.
    - `label`: gets the model's inputs, prompt and answer, and the prompt's length; gives each position's label, int64,
      shape (sequence,), 0 to `labels` - 1 or `NO_LABEL`.

    The result is float32, shape (rows, layers, labels), on the model's device.
    """
    check_prompt(inputs)
    if len(inputs["input_ids"]) != 1:
        raise UserError(
            "Attention is measured for one prompt at a time, input_ids of the shape (1, prompt); "
            f"these have {tuple(inputs['input_ids'].shape)}."
        )
    whole = with_answer(model, inputs, answer_token_ids)
    layer_count = len(find_decoder(model).layers)
    if layer not in (None, layer_count):
        check_prompt_end(model, inputs)
    all_labels = label(whole, inputs["input_ids"].shape[1])
    kept = keep_tokens(visual_token_mask(model.config, whole["input_ids"]), whole.get("attention_mask"))
    kept_labels = all_labels if kept is None else all_labels[kept.index[0]]
    sums: dict[int, torch.Tensor] = {}

    def add_up(layer_index: int, weights: torch.Tensor) -> None:
        of_keys = all_labels if layer is None or layer_index < layer else kept_labels
        sums[layer_index] = sum_by_label(weights[0], of_keys, labels)

    with (
        torch.no_grad(),
        captured_rows(model, row_count, add_up),
        nullcontext() if layer is None else withdraw(model, layer=layer),
    ):
        # Nothing is decoded after this pass: a cache and logits would only take memory.
        model(**whole, use_cache=False, logits_to_keep=1)
    missing = sorted(set(range(layer_count)) - set(sums))
    if missing:
        raise RuntimeError(
            f"The attention of decoder layers {missing} of this {type(model).__name__} doesn't run through "
            "transformers' attention interface, so it can't be measured."
        )
    return torch.stack([sums[index] for index in range(layer_count)], dim=1)


def sum_by_label(weights: torch.Tensor, labels: torch.Tensor, count: int) -> torch.Tensor:
    """Attention weights, float32, shape (rows, keys), summed over the keys of each label.

    `labels`, int64, shape (keys,), from 0 to `count` - 1 or `NO_LABEL`. The result has the shape (rows, count).
    """
    if weights.shape[-1] != labels.shape[0]:
        raise RuntimeError(
            f"A decoder layer attended to {weights.shape[-1]} positions where {labels.shape[0]} were "
            "expected, so it isn't known which of them are visual tokens."
        )
    # What has no label goes to a group of its own, which is cut off.
    groups = torch.where(labels == NO_LABEL, count, labels)
    sums = weights.new_zeros(weights.shape[0], count + 1)
    return sums.scatter_add_(1, groups.expand_as(weights), weights)[:, :-1]
