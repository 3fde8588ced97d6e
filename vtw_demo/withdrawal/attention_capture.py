"""Rows of the attention matrix, without the matrix, and what they make of the values.

Through transformers' attention interface: attention is computed by sdpa as ever, and beside it those rows of its matrix
that are asked for. So it works with thousands of visual tokens, where a full matrix wouldn't fit.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from vtw_demo.errors import UserError
from vtw_demo.withdrawal.architectures import find_decoder
from vtw_demo.withdrawal.compilation import uncompiled


def attention_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    attention_mask: torch.Tensor | None,
    row_count: int,
    scaling: float | None = None,
    is_causal: bool = True,
    rows_after: int = 0,
) -> Iterator[torch.Tensor]:
    """The last `row_count` rows of the attention matrix, or as many before its last `rows_after`, up to 64 of them at a
    time, in order: float32, each (batch, heads, rows, keys).

    - `query`, shape (batch, heads, queries, head_dim); `key`, shape (batch, key-value heads, keys, head_dim).
      Heads are a multiple of key-value heads: consecutive heads share one.
    - `attention_mask`, broadcastable to (batch, heads, queries, keys): bool (True: attend), float (added to
      the scores), or None.
    - `scaling`: factor of the scores; None means 1 / sqrt(head_dim).
    - `is_causal`: without a mask, whether query i attends to keys 0 to i only.
    """
    batch, heads, query_count, head_dim = query.shape
    _, key_value_heads, key_count, _ = key.shape
    positions = torch.arange(key_count, device=key.device)
    factor = head_dim**-0.5 if scaling is None else scaling
    transposed_key = key.float().transpose(2, 3)
    end = query_count - rows_after
    for start in range(end - row_count, end, _ROWS_AT_ONCE):
        rows = slice(start, min(start + _ROWS_AT_ONCE, end))
        # Heads that share keys are stacked as rows, so that keys needn't be repeated.
        stacked = query[:, :, rows].float().reshape(batch, key_value_heads, -1, head_dim) * factor
        scores = (stacked @ transposed_key).view(batch, heads, -1, key_count)
        if attention_mask is None and is_causal:
            scores = scores.masked_fill(positions > positions[rows, None], -torch.inf)
        elif attention_mask is not None:
            # A mask of one row serves all of them.
            mask = attention_mask[..., rows, :] if attention_mask.shape[-2] > 1 else attention_mask
            mask = mask[..., :key_count]
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        yield scores.softmax(dim=-1)


_ROWS_AT_ONCE = 64
"""Bounds the memory for a long answer: rows of all heads that are there at the same time."""


def attention_output(weights: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """What rows of weights, (batch, heads, rows, keys), make of the values, (batch, key-value heads, keys, width), all
    heads side by side as the output projection takes them: float32, (batch, rows, heads * width)."""
    batch, heads, rows, key_count = weights.shape
    made = weights.reshape(batch, value.shape[1], -1, key_count) @ value.float()
    return made.view(batch, heads, rows, -1).transpose(1, 2).flatten(2)


def output_cosine(weights: torch.Tensor, value: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
    """The cosine between the attention's output with the visual tokens and without: float32, (batch, rows). 1 is a
    position whose attention brings it nothing of them.

    - `weights` and `value` as `attention_output` takes them; `visual`, bool, (batch, keys).

    Without them: visual keys masked, so that in each head the weights of the others, from the softmax, make 1 again
    (VisiPruner, EMNLP 2025, masks them too). The output is that of all heads, before the output projection.
    """
    others = (~visual).any(0).nonzero()[:, 0]  # keys that are text in a row at least: few beside the visual ones
    without = weights.index_select(-1, others).masked_fill(visual[:, None, None, others], 0)
    # A head that sees nothing else makes nothing.
    without = without / without.sum(-1, keepdim=True).clamp_min(torch.finfo(without.dtype).tiny)
    outputs = attention_output(weights, value), attention_output(without, value.index_select(2, others))
    return torch.nn.functional.cosine_similarity(*outputs, dim=-1)


Receive = Callable[[int, torch.Tensor, torch.Tensor], None]
_INTERFACE = "vtw_demo_captured_rows"


@dataclass(frozen=True)
class _Capture:
    row_count: int
    rows_after: int
    receive: Receive


_captures: ContextVar[tuple[_Capture, ...]] = ContextVar("captures", default=())
"""What is captured; passes in other threads aren't."""

_ordinary = "sdpa"
"""By which attention passes in other threads are computed meanwhile: their model's own."""

_turn = threading.RLock()


@contextmanager
def captured_rows(model: PreTrainedModel, row_count: int, receive: Receive, rows_after: int = 0) -> Iterator[None]:
    """Hand the last rows of each decoder layer's attention matrix, but `rows_after`, to `receive`, inside a `with`
    block.

    In a forward pass of this thread, `receive(layer_index, weights, value)` is called for each decoder layer, in order,
    once for each block of `attention_rows`: `weights`, float32, (batch, heads, rows, keys), and the layer's `value`,
    (batch, key-value heads, keys, width). One row is one block. A layer that runs on fewer positions has fewer rows.
    Under `withdraw`, layers from K on have the kept positions as keys. Attention itself is computed by sdpa; the
    encoder of images isn't touched. Blocks in several threads take turns; one may be inside another.
    """
    global _ordinary
    config = find_decoder(model).config
    with _turn:
        before, outer = config._attn_implementation, _captures.get()
        if not outer:
            _ordinary = before
        token = _captures.set((*outer, _Capture(row_count, rows_after, receive)))
        config._attn_implementation = _INTERFACE
        try:
            with uncompiled():
                yield
        finally:
            config._attn_implementation = before
            _captures.reset(token)


def attention_of(model: PreTrainedModel) -> str:
    """By which of transformers' implementations attention is computed, while it is captured too."""
    implementation = find_decoder(model).config._attn_implementation
    return _ordinary if implementation == _INTERFACE else implementation


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    if (chosen := options.pop("indices", None)) is not None and attention_mask is not None:
        attention_mask = _with_chosen(attention_mask, chosen)
    # phi4_multimodal's vision encoder attends by the decoder's setting.
    if not (captures := _captures.get()) or not hasattr(module, "layer_idx"):
        eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", sdpa_attention_forward)
        compute = eager if _ordinary == "eager" else AttentionInterface()[_ordinary]
        return compute(module, query, key, value, attention_mask, **options)
    for name in ("softcap", "position_bias", "s_aux"):
        if options.get(name) is not None:
            raise UserError(
                f"{type(module).__name__} uses {name}; only a plain softmax of scaled products can be measured."
            )
    is_causal = options.get("is_causal")
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    scaling = options.get("scaling")
    for capture in captures:
        row_count = min(capture.row_count, query.shape[2] - capture.rows_after)
        for weights in attention_rows(query, key, attention_mask, row_count, scaling, is_causal, capture.rows_after):
            capture.receive(module.layer_idx, weights, value)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


def _with_chosen(mask: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """A mask, (batch, heads or 1, queries, keys), that leaves of the keys those which an indexer has chosen, (batch,
    queries, chosen): models leave them out themselves for sdpa and eager attention only."""
    others = torch.ones_like(mask[:, 0], dtype=torch.bool).scatter(-1, chosen.long(), False)[:, None]
    return mask & ~others if mask.dtype == torch.bool else mask.masked_fill(others, torch.finfo(mask.dtype).min)


def _mask(*args: Any, **options: Any) -> Any:
    return (sdpa_mask if _captures.get() else AttentionMaskInterface()[_ordinary])(*args, **options)


# Registered for good: a pass of another thread may look it up while a measurement ends.
AttentionInterface.register(_INTERFACE, _attention)
AttentionMaskInterface.register(_INTERFACE, _mask)
