"""Withdrawal without removing anything: the unmodified model, its attention to visual keys blocked.

Nothing here is shared with `vtw_demo.withdrawal`: all tokens go through all layers, and in layers from K on
the columns of visual tokens get a weight of zero through transformers' attention interface, in prefill and
decode. What text positions then hold is what withdrawal must give.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask

NAME = "visual_keys_blocked"


@contextmanager
def visual_keys_blocked(model: PreTrainedModel, layer: int, visual: torch.Tensor) -> Iterator[None]:
    """Inside the block, layers from `layer` on see no column where `visual` is True.

    `visual`, bool, shape (batch, prompt); rows are repeated where generation multiplies them (beams).
    """

    first_columns: dict[int, int] = {}
    """By the width of a mask, which tells the kinds of a forward pass apart: its first column."""

    def mask_of_all_columns(*, kv_length: int, kv_offset: int = 0, **kwargs) -> torch.Tensor:
        first_columns[kv_length] = int(kv_offset)
        return eager_mask(kv_length=kv_length, kv_offset=kv_offset, **kwargs)

    def attention(module, query, key, value, attention_mask, **kwargs):
        if module.layer_idx >= layer:
            width = attention_mask.shape[-1]
            first = first_columns[width]
            blocked = torch.zeros(query.shape[0], first + width, dtype=torch.bool)
            prompt = visual.repeat_interleave(query.shape[0] // visual.shape[0], dim=0)[:, : first + width]
            blocked[:, : prompt.shape[1]] = prompt
            attention_mask = attention_mask.masked_fill(
                blocked[:, None, None, first:], torch.finfo(attention_mask.dtype).min
            )
        eager = sys.modules[type(module).__module__].eager_attention_forward
        return eager(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask_of_all_columns)
    config = model.get_decoder().config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        del AttentionInterface._global_mapping[NAME]
        del AttentionMaskInterface._global_mapping[NAME]
