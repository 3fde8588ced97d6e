"""Two ways to what withdrawal must give that share nothing with `vtw_demo.withdrawal`.

- Nothing is removed: all tokens go through all layers, and in layers from K on visual keys get a weight of zero through
  transformers' attention interface, in prefill and decode. What text positions then hold is what withdrawal must give.
  The same where other tokens leave, or at several layers.
- The kept tokens alone run through the layers from K on, from what entered layer K with all of them there. It needs no
  attention, and neither cache nor padding.
"""

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask, flash_attention_mask
from transformers.modeling_outputs import CausalLMOutputWithPast


@contextmanager
def keys_blocked(model: PreTrainedModel, blocked_from: Mapping[int, torch.Tensor]) -> Iterator[dict[int, torch.Tensor]]:
    """Inside the block, layers from each of `blocked_from` on, up to the next, see no key where its tensor is True:
    bool, shape (batch, prompt); rows are repeated where generation multiplies them (beams).

    What comes is each layer's attention matrix of the latest forward pass, (batch, heads, queries, keys).
    """

    first_keys: dict[int, int] = {}
    """By the width of a mask, which tells the kinds of a forward pass apart: its first key."""

    def mask_of_all_keys(*, kv_length: int, kv_offset: int = 0, **kwargs) -> torch.Tensor:
        first_keys[kv_length] = int(kv_offset)
        return eager_mask(kv_length=kv_length, kv_offset=kv_offset, **kwargs)

    matrices: dict[int, torch.Tensor] = {}

    def attention(module, query, key, value, attention_mask, **kwargs):
        if begun := [layer for layer in blocked_from if layer <= module.layer_idx]:
            visual = blocked_from[max(begun)]
            width = attention_mask.shape[-1]
            first = first_keys[width]
            blocked = torch.zeros(query.shape[0], first + width, dtype=torch.bool)
            prompt = visual.repeat_interleave(query.shape[0] // visual.shape[0], dim=0)[:, : first + width]
            blocked[:, : prompt.shape[1]] = prompt
            attention_mask = attention_mask.masked_fill(
                blocked[:, None, None, first:], torch.finfo(attention_mask.dtype).min
            )
        if (chosen := kwargs.pop("indices", None)) is not None:  # an indexer's, which models mask themselves in eager
            among = torch.zeros_like(attention_mask[:, 0], dtype=torch.bool)
            for row, queries in enumerate(chosen.tolist()):
                for query_index, keys in enumerate(queries):
                    among[row, query_index, keys] = True
            attention_mask = attention_mask.masked_fill(~among[:, None], torch.finfo(attention_mask.dtype).min)
        eager = sys.modules[type(module).__module__].eager_attention_forward
        output, matrices[module.layer_idx] = eager(module, query, key, value, attention_mask, **kwargs)
        return output, matrices[module.layer_idx]

    with attention_implementation(model, "keys_blocked", attention, mask_of_all_keys):
        yield matrices


def visual_keys_blocked(
    model: PreTrainedModel, layer: int, visual: torch.Tensor
) -> AbstractContextManager[dict[int, torch.Tensor]]:
    """The same from `layer` on to the last."""
    return keys_blocked(model, {layer: visual})


@contextmanager
def kept_tokens_alone(model: PreTrainedModel, left_from: Mapping[int, torch.Tensor]) -> Iterator[None]:
    """Inside the block, the model's forward pass, which takes no cache, gives what its decoder makes of the kept tokens
    alone from each of the layers in `left_from` on, row by row: logits, of the last kept positions only. By layer,
    bool, shape (batch, prompt): which tokens have left.
    """
    whole = model.forward
    decoder = model.get_decoder()
    decoder = decoder if hasattr(decoder, "layers") else decoder.model
    caught: dict[str, Any] = {}
    first, *later = left_from

    def catch_positions(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        caught["positions"] = kwargs.get("position_ids")

    def catch_states(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        caught["states"] = args[0] if args else kwargs["hidden_states"]

    @functools.wraps(whole)
    def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **inputs: Any) -> Any:
        keep, labels = inputs.pop("logits_to_keep", 0), inputs.pop("labels", None)
        inputs = {name: value for name, value in inputs.items() if name not in ("use_cache", "past_key_values")}
        with hooked((decoder, catch_positions), (decoder.layers[first], catch_states)):
            out = whole(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **inputs)
        states, positions = caught["states"], caught["positions"]
        logits = torch.zeros_like(out.logits).expand(-1, input_ids.shape[1], -1).clone()
        present = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if positions is None:
            positions = torch.arange(input_ids.shape[1])[None]
        for row, there in enumerate(present):
            own = positions if positions.shape[-2] == 1 else positions[..., row : row + 1, :]
            at = there.nonzero()[:, 0]
            own_states = states[row, at]
            for (layer, left), following in zip(left_from.items(), (*later, None), strict=True):
                gone = left.repeat_interleave(len(input_ids) // len(left), dim=0)[row]
                stay = ~nn.functional.pad(gone, (0, input_ids.shape[1] - len(gone)))[at]
                at, ids = at[stay], input_ids[row, at[stay]][None]
                logits[row, at] = of_row(layer, following, ids, own_states[stay][None], own[..., at], at)
                own_states = caught["states"][0]
        loss = None if labels is None else model.loss_function(logits, labels, logits.shape[-1])
        return CausalLMOutputWithPast(loss=loss, logits=logits[:, -keep:], hidden_states=out.hidden_states)

    def of_row(
        layer: int,
        following: int | None,
        input_ids: torch.Tensor,
        states: torch.Tensor,
        positions: torch.Tensor,
        at: torch.Tensor,
    ) -> torch.Tensor:
        def set_positions(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple:
            mask = torch.ones_like(input_ids)  # without one, gaps between positions would part sequences
            return args, {**kwargs, "position_ids": positions, "attention_mask": mask}

        def set_states(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple:
            kwargs = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            return (states, *args[1:]), kwargs

        def skipped(below: Any, *args: Any, **kwargs: Any) -> Any:
            return (states, None) if type(below).__name__.startswith("MistralLarge4") else states

        def set_window(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple:
            age = at[:, None] - at  # a window is counted in the prompt's tokens
            visible = (age >= 0) & (age < module.self_attn.sliding_window)
            mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(states.dtype).min)
            return args, {**kwargs, "attention_mask": mask[None, None].to(states.dtype)}

        windows = [
            (module, set_window)
            for module in decoder.layers
            if getattr(getattr(module, "self_attn", None), "sliding_window", None)
        ]
        caught_at = [] if following is None else [(decoder.layers[following], catch_states)]
        for below in decoder.layers[:layer]:
            below.forward = functools.partial(skipped, below)
        try:
            with hooked((decoder, set_positions), (decoder.layers[layer], set_states), *windows, *caught_at):
                return whole(input_ids=input_ids, use_cache=False).logits[0]
        finally:
            for below in decoder.layers[:layer]:
                del below.forward

    settings = model.generation_config
    cached, settings.use_cache = settings.use_cache, False
    model.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.forward
        settings.use_cache = cached


@contextmanager
def hooked(*hooks: tuple[nn.Module, Callable]) -> Iterator[None]:
    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
