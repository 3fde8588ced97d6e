"""Withdrawal without removing anything: the unmodified model, its attention to visual keys blocked.

Nothing here is shared with `vtw_demo.withdrawal`: all tokens go through all layers, and in layers from K on
visual keys get a weight of zero through transformers' attention interface, in prefill and
decode. What text positions then hold is what withdrawal must give.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask, flash_attention_mask


@contextmanager
def visual_keys_blocked(model: PreTrainedModel, layer: int, visual: torch.Tensor) -> Iterator[None]:
    """Inside the block, layers from `layer` on see no key where `visual` is True.

    `visual`, bool, shape (batch, prompt); rows are repeated where generation multiplies them (beams).
    """

    first_keys: dict[int, int] = {}
    """By the width of a mask, which tells the kinds of a forward pass apart: its first key."""

    def mask_of_all_keys(*, kv_length: int, kv_offset: int = 0, **kwargs) -> torch.Tensor:
        first_keys[kv_length] = int(kv_offset)
        return eager_mask(kv_length=kv_length, kv_offset=kv_offset, **kwargs)

    def attention(module, query, key, value, attention_mask, **kwargs):
        if module.layer_idx >= layer:
            width = attention_mask.shape[-1]
            first = first_keys[width]
            blocked = torch.zeros(query.shape[0], first + width, dtype=torch.bool)
            prompt = visual.repeat_interleave(query.shape[0] // visual.shape[0], dim=0)[:, : first + width]
            blocked[:, : prompt.shape[1]] = prompt
            attention_mask = attention_mask.masked_fill(
                blocked[:, None, None, first:], torch.finfo(attention_mask.dtype).min
            )
        eager = sys.modules[type(module).__module__].eager_attention_forward
        return eager(module, query, key, value, attention_mask, **kwargs)

    with attention_implementation(model, "visual_keys_blocked", attention, mask_of_all_keys):
        yield


@contextmanager
def flash_attention_stand_in(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block, attention runs as flash attention does, in what it is handed and what it makes of it.

    It takes a mask of padding alone, or none; is causal and slides a window among the keys that it is
    handed, aligned at the end; and takes positions with a gap for those of several sequences.
    """

    def attention(module, query, key, value, attention_mask, **kwargs):
        position_ids, sliding_window = kwargs.pop("position_ids", None), kwargs.pop("sliding_window", None)
        if position_ids is not None and attention_mask is None and (position_ids.diff(dim=-1) != 1).any():
            raise AssertionError("flash attention would attend within runs of positions")
        age = torch.arange(key.shape[2] - query.shape[2], key.shape[2])[:, None] - torch.arange(key.shape[2])
        visible = (age >= 0) & (age < (sliding_window or key.shape[2]))
        if attention_mask is not None:
            visible = visible & attention_mask.bool()[:, None, None, :]
        mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(query.dtype).min)
        eager = sys.modules[type(module).__module__].eager_attention_forward
        return eager(module, query, key, value, mask.expand(query.shape[0], 1, -1, -1), **kwargs)

    with attention_implementation(model, "flash_attention_stand_in", attention, flash_attention_mask):
        yield


@contextmanager
def attention_implementation(
    model: PreTrainedModel,
    name: str,
    attention: Callable,
    mask: Callable,
) -> Iterator[None]:
    """Let the decoder of `model` attend by these functions inside the block."""
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, mask)
    config = model.get_decoder().config
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before
        del AttentionInterface._global_mapping[name]
        del AttentionMaskInterface._global_mapping[name]
