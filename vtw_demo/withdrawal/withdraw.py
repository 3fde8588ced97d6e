"""Visual tokens withdrawal: from decoder layer K on, a model goes on without its visual tokens.

Lin, Lin, Lin, Ji, "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid
Inference", AAAI 2025, arXiv 2405.05803; authors' code: github lzhxmu/VTW. This module is the only one of
the project that changes a forward pass. It does so with hooks on the model and its decoder layers. Columns and
slots are those of `vtw_demo.withdrawal.kept_tokens`.
"""

import functools
import inspect
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from vtw_demo.errors import UserError
from vtw_demo.withdrawal.architectures import (
    check_family,
    check_flash_window,
    find_decoder,
    key_sources,
    rescale_query,
    scales_attention_by_position,
    without_late_features,
)
from vtw_demo.withdrawal.kept_tokens import (
    KeptPositions,
    LayerArguments,
    Slots,
    add_slots,
    keep_positions,
    key_span,
    put_hidden_states,
    take_hidden_states,
)
from vtw_demo.withdrawal.segments import visual_token_ids, visual_token_mask


@contextmanager
def withdraw(model: PreTrainedModel, layer: int) -> Iterator[None]:
    """Withdraw the visual tokens of `model` at the withdrawal layer `layer` (K), inside a `with` block.

        with withdraw(model, layer=15):
            model.generate(**inputs)

    Before decoder layer K (counted from 0) runs in a prefill, the visual tokens leave the sequence. The kept
    tokens keep their positions. Layers below K work as ever; layers from K on never hold a visual key or
    value. Decoding goes on with the KV cache, in which layers from K on are shorter, and counts positions
    from the full prompt. A prompt without visual tokens runs unchanged. K = L, the number of decoder
    layers, withdraws nothing. (arXiv 2405.05803, section 4; `pe_type="keep"` in the authors' code.)

    What a caller sees keeps its shape: in logits, loss and hidden states of shape (batch, sequence, ...), a
    withdrawn token stays as it was at layer K. Attention weights of layers from K on are those among the kept
    tokens.

    `model` is any vision-language model of transformers whose visual tokens are in its decoder's own
    sequence.

    A KV cache that was filled in one context belongs to its K: it can be used further in a context of the
    same K only.

    Raises
    - TypeError if `layer` isn't an integer,
    - ValueError unless 1 <= layer <= L,
    - ValueError for a model in which withdrawal can't mean anything: cross-attention, an encoder-decoder,
      convolution or linear attention layers, embeddings handed to an inner `generate`; and for one whose
      configuration names no placeholder tokens,
    - RuntimeError if a withdrawal is active on this model already,
    and from forward passes inside the block
    - ValueError if visual tokens can't be found: `inputs_embeds` without `input_ids`, or visual input without
      a placeholder token,
    - RuntimeError for a KV cache of another K, for training with gradient checkpointing, and for arguments
      of decoder layers that aren't understood.
    """
    check_family(model)
    layers = find_decoder(model).layers
    check_layer(layer, len(layers))
    with exclusive(model):
        withdrawal = Withdrawal(model, layers, layer)
        try:
            if layer < len(layers):
                withdrawal.register()
            yield
        finally:
            withdrawal.remove()


@contextmanager
def exclusive(model: PreTrainedModel) -> Iterator[None]:
    """Keep other withdrawals off `model` inside a `with` block. Raises RuntimeError if one is active already."""
    layers = find_decoder(model).layers
    with _active_lock:
        if layers in _active:
            raise RuntimeError(
                f"A withdrawal is active on this {type(model).__name__} already; leave its context first "
                "(one model has one withdrawal layer at a time)."
            )
        _active.add(layers)
    try:
        yield
    finally:
        with _active_lock:
            _active.discard(layers)


_active: weakref.WeakSet[nn.ModuleList] = weakref.WeakSet()
_active_lock = threading.Lock()


def check_layer(layer: int, layer_count: int) -> None:
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise TypeError(f"The withdrawal layer must be an integer; this is {layer!r}.")
    if layer == 0:
        raise UserError(
            f"The withdrawal layer must be from 1 to {layer_count}, the number of decoder layers; this is 0. "
            "At 0 the model would never see the picture: leave the picture out of the prompt instead."
        )
    if not 1 <= layer <= layer_count:
        raise UserError(
            f"The withdrawal layer must be from 1 to {layer_count}, the number of decoder layers; this is {layer}."
        )


class WithdrawnCacheLayer(CacheLayerMixin):
    """Mixed into the class of a KV cache's layer that holds kept tokens only.

    It counts the withdrawn ones too where it is asked for its length, because models and `generate` size
    masks and count positions by that, from whichever layer is the first of its kind.
    """

    slots: Slots | None = None

    @property
    def withdrawn_count(self) -> int:
        return 0 if self.slots is None else self.slots.columns - self.slots.count

    def get_seq_length(self) -> int:
        return super().get_seq_length() + self.withdrawn_count  # type: ignore[safe-super]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return key_span(self, self.get_seq_length(), query_length)

    def reset(self) -> None:
        super().reset()
        self.slots = None

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self.select_rows(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self.select_rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        if self.slots is not None:
            batch = torch.arange(self.slots.column.shape[0], device=self.slots.column.device)
            self.select_rows(batch.repeat_interleave(repeats))

    def select_rows(self, rows: torch.Tensor) -> None:
        if self.slots is not None:
            self.slots = self.slots.rows(rows.to(self.slots.column.device))


@functools.cache
def withdrawn_class(layer_class: type) -> type:
    """The class of cache layers, mixed with `WithdrawnCacheLayer`."""
    # Without a layer type of its own, so that transformers doesn't take it for the class of new layers.
    return type(layer_class)(
        f"Withdrawn{layer_class.__name__}", (WithdrawnCacheLayer, layer_class), {"_layer_type": None}
    )


def note_slots(layer: Any, slots: Slots) -> None:
    """Make a layer of a KV cache know its slots."""
    # A layer that uses another's keys and values has no lengths to answer for.
    if isinstance(layer, CacheLayerMixin) and not isinstance(layer, WithdrawnCacheLayer):
        layer.__class__ = withdrawn_class(type(layer))
    layer.slots = slots


def noted_slots(cache: Cache) -> tuple[int, Slots | None]:
    """From which layer on a KV cache goes without withdrawn tokens, and the slots; (0, None) if none does."""
    for index, layer in enumerate(cache.layers):
        if (slots := getattr(layer, "slots", None)) is not None:
            return index, slots
    return 0, None


@dataclass
class _Forward:
    """What one forward pass needs to remember between its hooks."""

    sequence_length: int
    kept: KeptPositions | None
    """None where this pass withdraws nothing: decoding, or no image."""
    columns_before: int
    """Columns that the KV cache held before this pass."""
    restore_each_layer: bool
    tail: int
    """How many positions of the final hidden states are read; 0 means all."""
    arguments: LayerArguments | None
    """None where layers from K on see all that the others see."""
    full: torch.Tensor | None = None
    """The hidden states that enter layer K."""
    only_tail: bool = False
    """True once the model itself has cut the sequence to its tail."""


class Withdrawal:
    """The hooks of one `withdraw` context; `vtw_demo.withdrawal.baselines` varies them."""

    def __init__(self, model: PreTrainedModel, layers: nn.ModuleList, layer: int) -> None:
        self.model = model
        self.decoder = find_decoder(model)
        self.layers = layers
        self.layer = layer
        self.parameters = tuple(inspect.signature(model.forward).parameters)
        self.layer_parameters = [tuple(inspect.signature(module.forward).parameters) for module in layers]
        self.is_flash = "flash" in self.decoder.config._attn_implementation
        self.key_sources = key_sources(self.decoder.config, len(layers))
        self.handles: list[Any] = []
        self.forward: _Forward | None = None

    def register(self) -> None:
        hooks: list[tuple[nn.Module, str, Any, dict[str, bool]]] = [
            (self.model, "pre", self.begin, {}),
            (self.model, "post", self.end, {"always_call": True}),
            (self.decoder, "pre", self.before_decoder, {}),
        ]
        for index in range(self.layer, len(self.layers)):
            module: Any = self.layers[index]
            hooks.append((module, "pre", functools.partial(self.before_layer, index), {}))
            # First of all hooks, so that those that record hidden states record restored ones.
            hooks.append((module, "post", functools.partial(self.after_layer, index), {"prepend": True}))
            if scales_attention_by_position(module):
                scaling = functools.partial(self.after_query_projection, module.self_attn)
                hooks.append((module.self_attn.q_proj, "post", scaling, {}))
        for module, when, hook, options in hooks:
            register = module.register_forward_pre_hook if when == "pre" else module.register_forward_hook
            self.handles.append(register(hook, with_kwargs=True, **options))

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.forward = None

    def leaving(self, input_ids: torch.Tensor, padding_mask: torch.Tensor | None) -> torch.Tensor:
        """Which tokens leave the sequence, bool, shape (batch, sequence): the visual ones."""
        return visual_token_mask(self.model.config, input_ids)

    def begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given = dict(zip(self.parameters, args, strict=False)) | kwargs
        input_ids = given.get("input_ids")
        if input_ids is None:
            raise UserError(
                "withdraw finds the visual tokens by their token ids, and this forward pass has no "
                "input_ids. Hand input_ids instead of inputs_embeds."
            )
        if self.model.training and self.model.is_gradient_checkpointing:
            raise RuntimeError(
                "withdraw doesn't work with gradient checkpointing, which runs layers again after the "
                "forward pass. Call model.gradient_checkpointing_disable() first."
            )
        cache: Cache | None = given.get("past_key_values")
        sequence_length = input_ids.shape[1]
        columns_before = count_columns(cache, sequence_length)
        noted_layer, slots = noted_slots(cache) if cache is not None and columns_before else (0, None)
        if slots is not None and noted_layer != self.layer:
            raise RuntimeError(
                f"This KV cache was filled with withdrawal layer {noted_layer}, and is used now with "
                f"{self.layer}. Start with a new cache."
            )
        kept = None
        # A placeholder that the model itself has written into its answer is no visual token.
        if columns_before == 0 or has_visual_input(given):
            padding_mask = own_padding_mask(given, sequence_length)
            kept = keep_positions(self.leaving(input_ids, padding_mask), padding_mask)
            if kept is None and has_visual_input(given):
                raise UserError(
                    f"This forward pass of {type(self.model).__name__} is handed visual input, but none of "
                    f"its tokens is one of the placeholders {visual_token_ids(self.model.config)}, so the "
                    "visual tokens can't be found."
                )
        if kept is not None:
            slots = add_slots(slots, kept, columns_before, columns_before + sequence_length)
        output_hidden_states = given.get("output_hidden_states")
        if output_hidden_states is None:
            output_hidden_states = self.decoder.config.output_hidden_states
        logits_to_keep = given.get("logits_to_keep", 0) if "logits_to_keep" in self.parameters else 0
        only_tail = kept is not None and isinstance(logits_to_keep, int) and logits_to_keep <= kept.tail
        self.forward = _Forward(
            sequence_length=sequence_length,
            kept=kept,
            columns_before=columns_before,
            restore_each_layer=bool(output_hidden_states),
            tail=logits_to_keep if only_tail and not output_hidden_states else 0,
            arguments=None
            if slots is None
            else LayerArguments(kept, slots, sequence_length, columns_before, self.is_flash),
        )

    def end(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        self.forward = None

    def before_decoder(
        self, module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        forward = self.forward
        if forward is None or forward.kept is None:
            return None
        kwargs = without_late_features(kwargs, self.layer)
        if not forward.tail and "logits_to_keep" in kwargs:
            kwargs["logits_to_keep"] = 0  # gemma4 would cut kept tokens to a tail that isn't the prompt's
        return args, kwargs

    def before_layer(
        self, index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        forward = self.forward
        if forward is None:
            raise RuntimeError(
                f"A decoder layer of {type(self.model).__name__} ran outside of the model's own forward "
                "pass, where withdraw can't know the visual tokens. Call the model that was handed to it."
            )
        hidden_states = args[0]
        kwargs = dict(zip(self.layer_parameters[index][1:], args[1:], strict=False)) | kwargs
        cache = kwargs.get("past_key_values")
        if forward.arguments is None:
            return None
        if index == self.layer and forward.kept is not None:
            forward.full = hidden_states
        if forward.kept is not None:
            whole = index == self.layer or forward.restore_each_layer
            length = forward.sequence_length if whole else forward.kept.index.shape[1]
            forward.only_tail = forward.only_tail or hidden_states.shape[-2] != length
            if not forward.only_tail:
                if whole:
                    hidden_states = take_hidden_states(hidden_states, forward.kept)
                for name, value in tuple(kwargs.items()):
                    if name != "attention_mask":
                        kwargs[name] = forward.arguments.take(module, name, value)
        if self.is_flash:
            check_flash_window(module, forward.columns_before + forward.sequence_length)
            kwargs["position_ids"] = None  # it takes a gap in the positions for the start of another sequence
        source = self.key_sources[index]
        kwargs["attention_mask"] = forward.arguments.mask(
            module,
            kwargs.get("attention_mask"),
            query_count=hidden_states.shape[-2],
            cache_layer=cache.layers[source] if cache is not None and source < len(cache.layers) else None,
            sees_all_columns=source < self.layer,
            tail_only=forward.only_tail,
        )
        return (hidden_states,), kwargs

    def after_layer(self, index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        forward = self.forward
        if forward is None or forward.kept is None or forward.arguments is None:
            return None
        cache = kwargs.get("past_key_values")
        if cache is not None:
            note_slots(cache.layers[index], forward.arguments.slots)
        last = index == len(self.layers) - 1
        if forward.only_tail or not (forward.restore_each_layer or last):
            return None
        hidden_states = output[0] if isinstance(output, tuple) else output
        if forward.tail:
            hidden_states = hidden_states[..., -forward.tail :, :]
        else:
            assert forward.full is not None
            hidden_states = put_hidden_states(forward.full, hidden_states, forward.kept)
        return (hidden_states, *output[1:]) if isinstance(output, tuple) else hidden_states

    def after_query_projection(
        self,
        attention: nn.Module,
        module: nn.Module,
        args: tuple,
        kwargs: dict[str, Any],
        output: torch.Tensor,
    ) -> torch.Tensor | None:
        forward = self.forward
        if forward is None or forward.kept is None or forward.only_tail:
            return None
        return rescale_query(attention, output, forward.columns_before, forward.kept.index)


def count_columns(cache: Cache | None, sequence_length: int) -> int:
    """How many columns a KV cache holds before a forward pass of so many tokens."""
    length = 0 if cache is None else cache.get_seq_length()
    if isinstance(length, int):
        return length
    # A static cache counts on the device, where asking would wait for it; its sliding layers count here too.
    assert cache is not None
    for layer in cache.layers:
        if layer.is_sliding:
            return layer.get_seq_length()
    # In decoding, masks are as wide as the cache, and an upper bound does.
    return int(length) if sequence_length > 1 else cache.layers[0].max_cache_len - 1


def has_visual_input(given: dict[str, Any]) -> bool:
    """Whether a forward pass is handed pictures or videos, or what the vision encoder made of them."""
    encoded = given.get("mm_encoder_outputs") or {}
    return any(encoded.get(name) is not None for name in ("image", "video")) or any(
        value is not None for name, value in given.items() if name.startswith(("pixel_values", "image_patches"))
    )


def own_padding_mask(given: dict[str, Any], sequence_length: int) -> torch.Tensor | None:
    """The part of a two-dimensional attention mask that is about the tokens of this forward pass."""
    mask = given.get("attention_mask")
    return mask[:, -sequence_length:] if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None


def logits_of(model: PreTrainedModel, hidden_states: torch.Tensor, token_id: int) -> torch.Tensor:
    """The logits that `model` makes of hidden states as its last decoder layer hands them on.

    - `hidden_states`, shape (..., positions, hidden).
    - `token_id`: of any text token; the forward pass that this takes begins with so many of them.

    The result has the shape (positions, vocabulary). All but the decoder layers runs, in the model's own forward
    pass: what models do to hidden states and logits besides norm and head (scales, soft caps) differs.
    """
    layers = find_decoder(model).layers
    input_ids = torch.full((1, hidden_states.shape[-2]), token_id, device=model.device)

    def hand_on(*args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states.unsqueeze(-3)

    replaced = [(layer, layer.__dict__.get("forward")) for layer in layers]
    try:
        for layer in layers:
            layer.forward = hand_on
        return model(input_ids=input_ids, use_cache=False).logits[0]
    finally:
        for layer, forward in replaced:
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward
