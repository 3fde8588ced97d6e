"""Rows of the attention matrix, without the matrix.

Measured in a pass of its own, through transformers' attention interface: the outputs of attention come from
sdpa as ever, and beside them the rows of the attention matrix that are asked for, and no others, are computed
from the same queries and keys. So it works with thousands of visual tokens, where a full matrix wouldn't fit.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from vtw_demo.errors import UserError
from vtw_demo.withdrawal.architectures import find_decoder
from vtw_demo.withdrawal.kept_tokens import keep_positions
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

    Raises what `vtw_demo.measure_attention` raises.
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
    kept = keep_positions(visual_token_mask(model.config, whole["input_ids"]), whole.get("attention_mask"))
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

    `labels`, int64, shape (keys,), from 0 to `count` - 1 or `NO_LABEL`. The result has the shape (rows, count). Raises
    RuntimeError unless there is one label for each key.
    """
    if weights.shape[-1] != labels.shape[0]:
        raise RuntimeError(
            f"A decoder layer attended to {weights.shape[-1]} positions where {labels.shape[0]} were "
            "expected, so it isn't known which of them are visual tokens."
        )
    # What has no label goes to a column of its own, which is cut off.
    columns = torch.where(labels == NO_LABEL, count, labels)
    sums = weights.new_zeros(weights.shape[0], count + 1)
    return sums.scatter_add_(1, columns.expand_as(weights), weights)[:, :-1]


def attention_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    attention_mask: torch.Tensor | None,
    row_count: int,
    scaling: float | None = None,
    is_causal: bool = True,
) -> torch.Tensor:
    """The last `row_count` rows of the attention matrix, mean over heads: float32, (batch, rows, keys).

    - `query`, shape (batch, heads, queries, head_dim); `key`, shape (batch, key-value heads, keys, head_dim).
      Heads are a multiple of key-value heads: consecutive heads share one.
    - `attention_mask`, broadcastable to (batch, heads, queries, keys): bool (True: attend), float (added to
      the scores), or None.
    - `scaling`: factor of the scores; None means 1 / sqrt(head_dim).
    - `is_causal`: without a mask, whether query i attends to keys 0 to i only.
    """
    batch, heads, query_count, head_dim = query.shape
    _, key_value_heads, key_count, _ = key.shape
    if attention_mask is None and is_causal:
        columns = torch.arange(key_count, device=key.device)
        attention_mask = columns <= columns[:query_count, None]
    factor = head_dim**-0.5 if scaling is None else scaling
    transposed_key = key.float().transpose(2, 3)
    blocks = []
    for start in range(query_count - row_count, query_count, _ROWS_AT_ONCE):
        rows = slice(start, min(start + _ROWS_AT_ONCE, query_count))
        # Heads that share keys are stacked as rows, so that keys needn't be repeated.
        stacked = query[:, :, rows].float().reshape(batch, key_value_heads, -1, head_dim)
        scores = (stacked @ transposed_key).view(batch, heads, -1, key_count) * factor
        if attention_mask is not None:
            # A mask of one row serves all of them.
            mask = attention_mask[..., rows, :] if attention_mask.shape[-2] > 1 else attention_mask
            mask = mask[..., :key_count]
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        blocks.append(scores.softmax(dim=-1).mean(dim=1))
    return torch.cat(blocks, dim=1)


_ROWS_AT_ONCE = 64
"""Bounds the memory for a long answer: rows of all heads that are there at the same time."""

_INTERFACE = "vtw_demo_captured_rows"

_capture: ContextVar[Callable[..., None] | None] = ContextVar("capture", default=None)
"""What takes the queries and keys of the pass that runs now; passes in other threads aren't captured."""

_turn = threading.Lock()


@contextmanager
def captured_rows(
    model: PreTrainedModel, row_count: int, receive: Callable[[int, torch.Tensor], None]
) -> Iterator[None]:
    """Hand the last rows of each decoder layer's attention matrix to `receive`, inside a `with` block.

    In a forward pass of this thread, `receive(layer_index, weights)` is called once for each decoder layer,
    in order, with the weights of `attention_rows`: float32, shape (batch, rows, keys), mean over heads.
    Under `withdraw`, layers from K on have the kept positions as keys.

    Attention itself is computed by sdpa. The encoder of images isn't touched. Leaving the block, by an
    exception too, sets the decoder's attention implementation back. Blocks in several threads take turns.

    Forward passes raise ValueError for attention with soft caps, position biases or learned sinks.
    """

    def capture(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **options: Any,
    ) -> None:
        for name in ("softcap", "position_bias", "s_aux"):
            if options.get(name) is not None:
                raise UserError(
                    f"{type(module).__name__} uses {name}; attention mass is known for plain softmax of "
                    "scaled products."
                )
        is_causal = options.get("is_causal")
        if is_causal is None:
            is_causal = getattr(module, "is_causal", True)
        weights = attention_rows(query, key, attention_mask, row_count, options.get("scaling"), is_causal)
        receive(module.layer_idx, weights)

    config = find_decoder(model).config
    with _turn:
        before = config._attn_implementation
        token = _capture.set(capture)
        config._attn_implementation = _INTERFACE
        try:
            yield
        finally:
            config._attn_implementation = before
            _capture.reset(token)


def _sdpa_with_capture(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    capture = _capture.get()
    if capture is not None:
        capture(module, query, key, attention_mask, **options)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


# Registered for good: a pass of another thread may look it up while a measurement ends.
AttentionInterface.register(_INTERFACE, _sdpa_with_capture)
AttentionMaskInterface.register(_INTERFACE, sdpa_mask)
