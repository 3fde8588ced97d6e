"""Visual tokens withdrawal: from decoder layer K on, a model goes on without its visual tokens.

Lin, Lin, Lin, Ji, "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid
Inference", AAAI 2025, arXiv 2405.05803; authors' code: github lzhxmu/VTW. This module is the only one of
the project that changes a forward pass. It does so with hooks on the model and its decoder layers.

Words used below: a *column* is a position of the whole sequence as layers below K see it; a *slot* is a place
among the keys of layers from K on, which hold kept tokens only. Rows of a batch that keep fewer tokens than
others have empty slots on their left, as in left padding.
"""

import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import Cache, PreTrainedModel

from vtw_demo.segments import visual_token_mask


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

    A KV cache that was filled in one context belongs to its K: it can be used further in a context of the
    same K only.

    Raises
    - TypeError if `layer` isn't an integer,
    - ValueError unless 1 <= layer <= L,
    - RuntimeError if a withdrawal is active on this model already,
    and from forward passes inside the block
    - ValueError if it isn't told the token ids (`inputs_embeds` alone: visual tokens can't be found there),
    - RuntimeError for a KV cache of another K, and for training with gradient checkpointing.
    """
    layers = decoder_layers(model)
    _check_layer(layer, len(layers))
    with _active_lock:
        if layers in _active:
            raise RuntimeError(
                f"A withdrawal is active on this {type(model).__name__} already; leave its context first "
                "(one model has one withdrawal layer at a time)."
            )
        _active.add(layers)
    withdrawal = _Withdrawal(model, layers, layer)
    try:
        if layer < len(layers):
            withdrawal.register()
        yield
    finally:
        withdrawal.remove()
        with _active_lock:
            _active.discard(layers)


_active: weakref.WeakSet[nn.ModuleList] = weakref.WeakSet()
_active_lock = threading.Lock()


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a vision-language model, in the order in which they run."""
    return model.get_decoder().layers


def _check_layer(layer: int, layer_count: int) -> None:
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise TypeError(f"The withdrawal layer must be an integer; this is {layer!r}.")
    if layer == 0:
        raise ValueError(
            f"The withdrawal layer must be from 1 to {layer_count}, the number of decoder layers; this is 0. "
            "At 0 the model would never see the picture: leave the picture out of the prompt instead."
        )
    if not 1 <= layer <= layer_count:
        raise ValueError(
            f"The withdrawal layer must be from 1 to {layer_count}, the number of decoder layers; "
            f"this is {layer}."
        )


@dataclass(frozen=True)
class KeptPositions:
    """The positions of one prefill that go on.

    - `index`, int64, shape (batch, kept): positions in ascending order, right-aligned in each row.
    - `valid`, bool, shape (batch, kept): False for an empty slot, whose index means nothing; None where
      every row keeps equally many, so that there are none.
    - `tail`: how many positions at the end of the sequence are kept in every row.
    """

    index: torch.Tensor
    valid: torch.Tensor | None
    tail: int


@dataclass(frozen=True)
class Slots:
    """Which column each slot of the layers from K on holds.

    - `column`, int64, shape (batch, slots), and `valid` as in `KeptPositions`.
    - `columns`: how many columns this accounts for; any later column has the next slot.
    """

    column: torch.Tensor
    valid: torch.Tensor | None
    columns: int

    def extend(self, column_count: int) -> "Slots":
        """The same, accounting for `column_count` columns of which all new ones are kept."""
        batch = self.column.shape[0]
        new = torch.arange(self.columns, column_count, device=self.column.device).expand(batch, -1)
        return self.append(new, None, column_count)

    def append(self, column: torch.Tensor, valid: torch.Tensor | None, column_count: int) -> "Slots":
        """The same with further slots to the right, accounting for `column_count` columns."""
        if self.valid is not None or valid is not None:
            old = torch.ones_like(self.column, dtype=torch.bool) if self.valid is None else self.valid
            new = torch.ones_like(column, dtype=torch.bool) if valid is None else valid
            valid = torch.cat([old, new], dim=1)
        return Slots(torch.cat([self.column, column], dim=1), valid, column_count)


def keep_positions(visual: torch.Tensor, attention_mask: torch.Tensor | None) -> KeptPositions | None:
    """Which positions to keep, from bool or 0/1 tensors of shape (batch, sequence); None if none is visual.

    Padding isn't kept. Waits for the device once.
    """
    keep = ~visual
    if attention_mask is not None:
        keep &= attention_mask.bool()
    counts = keep.sum(1)
    tail = keep.all(0).flip(0).cumprod(0).sum()
    any_visual, most, fewest, tail_length = torch.stack(
        [visual.any().long(), counts.max(), counts.min(), tail]
    ).tolist()
    if not any_visual:
        return None
    slots = max(most, 1)  # layers can't run on no token at all
    # A stable sort of False and True puts what is kept at the end, in order.
    index = keep.byte().argsort(dim=1, stable=True)[:, keep.shape[1] - slots :]
    return KeptPositions(index, keep.gather(1, index) if fewest < slots else None, tail_length)


def take_positions(tensor: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
    """Gather along the sequence dimension `dim`, row by row; the batch is the dimension before it.

    `index` has the shape (batch, kept). A tensor whose batch has size 1 serves all rows.
    """
    dim = dim % tensor.ndim
    batch, kept = index.shape
    shape = list(tensor.shape)
    shape[dim - 1] = batch
    index_shape = [1] * tensor.ndim
    index_shape[dim - 1], index_shape[dim] = batch, kept
    gathered_shape = [*shape[:dim], kept, *shape[dim + 1 :]]
    return tensor.expand(shape).gather(dim, index.view(index_shape).expand(gathered_shape))


def take_hidden_states(hidden_states: torch.Tensor, kept: KeptPositions) -> torch.Tensor:
    """Hidden states of the kept positions, shape (..., batch, kept, hidden); empty slots are zero."""
    taken = take_positions(hidden_states, kept.index, -2)
    if kept.valid is not None:  # no key or value of a visual token may come about, masked or not
        taken = taken.masked_fill(~kept.valid[..., None], 0)
    return taken


def put_hidden_states(full: torch.Tensor, taken: torch.Tensor, kept: KeptPositions) -> torch.Tensor:
    """`full`, shape (..., batch, sequence, hidden), with the kept positions replaced by `taken`."""
    if kept.valid is not None:
        taken = torch.where(kept.valid[..., None], taken, take_positions(full, kept.index, -2))
    return full.scatter(-2, kept.index[..., None].expand_as(taken), taken)


def take_mask(mask: torch.Tensor, slots: Slots, queries: torch.Tensor | None, key_count: int) -> torch.Tensor:
    """An attention mask for the layers from K on, out of the mask for layers that keep every token.

    - `mask`, shape (batch or 1, heads or 1, queries, columns), bool (True: attend) or float (added), or of
      shape (batch, columns), 1 for what isn't padding.
    - `queries`, shape (batch, kept): the rows to take; None takes all.
    - `key_count`: how many keys the layer has, at least as many as there are slots.

    The result has one column for each key. Keys beyond the mask's columns are blocked.
    """
    slots = slots.extend(slots.columns + key_count - slots.column.shape[1])
    visible = slots.column < mask.shape[-1]
    if slots.valid is not None:
        visible = visible & slots.valid
    column = slots.column.clamp(max=mask.shape[-1] - 1)
    blocked = 0 if mask.dtype == torch.bool or mask.ndim == 2 else torch.finfo(mask.dtype).min
    if mask.ndim == 2:
        return take_positions(mask, column, 1).masked_fill(~visible, blocked)
    batch = column.shape[0]
    mask = mask.expand(batch, -1, -1, -1)
    if queries is not None:
        mask = mask.gather(2, queries[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
    taken = mask.gather(3, column[:, None, None, :].expand(-1, *mask.shape[1:3], -1))
    return taken.masked_fill(~visible[:, None, None, :], blocked)


def make_mask(slots: Slots, query_count: int, key_count: int) -> torch.Tensor | None:
    """The mask that plainly causal attention without padding needs in the layers from K on, or None.

    bool, shape (batch, 1, queries, keys); None where there are no empty slots. The queries are the last of
    the slots.
    """
    if slots.valid is None:
        return None
    slot_count = slots.column.shape[1]
    key = torch.arange(key_count, device=slots.column.device)
    query = key[slot_count - query_count : slot_count]
    valid = nn.functional.pad(slots.valid, (0, key_count - slot_count))
    return (key <= query[:, None]) & valid[:, None, None, :]


@dataclass
class _Forward:
    """What one forward pass needs to remember between its hooks."""

    sequence_length: int
    kept: KeptPositions | None
    """None where this pass withdraws nothing: decoding, or no image."""
    columns_before: int
    """Columns that the KV cache held before this pass."""
    restore_each_layer: bool
    restore_at_end: bool
    slots: Slots | None = None
    """None where layers from K on see all that the others see."""
    full: torch.Tensor | None = None
    """The hidden states that enter layer K."""
    taken: dict[tuple[int, int], tuple[Any, Any]] = field(default_factory=dict)
    """By the identity of a tensor that all layers are handed: the tensor, and what layers from K on get."""


class _Withdrawal:
    """The hooks of one `withdraw` context."""

    def __init__(self, model: PreTrainedModel, layers: nn.ModuleList, layer: int) -> None:
        self.model = model
        self.decoder_config = model.get_decoder().config
        self.layers = layers
        self.layer = layer
        self.signature = inspect.signature(model.forward)
        self.handles: list[Any] = []
        self.forward: _Forward | None = None

    def register(self) -> None:
        model = self.model
        self.handles.append(model.register_forward_pre_hook(self.begin, with_kwargs=True))
        self.handles.append(model.register_forward_hook(self.end, always_call=True))
        for index in range(self.layer, len(self.layers)):
            module = self.layers[index]
            self.handles.append(module.register_forward_pre_hook(self.before_layer(index), with_kwargs=True))
            # First of all hooks, so that those that record hidden states record restored ones.
            self.handles.append(module.register_forward_hook(self.after_layer(index), prepend=True))

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.forward = None

    def begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        bound = self.signature.bind_partial(*args, **kwargs).arguments
        given = {**bound, **bound.get("kwargs", {})}
        input_ids = given.get("input_ids")
        if input_ids is None:
            raise ValueError(
                "withdraw finds the visual tokens by their token ids, and this forward pass has no "
                "input_ids. Hand input_ids instead of inputs_embeds."
            )
        if module.training and module.is_gradient_checkpointing:
            raise RuntimeError(
                "withdraw doesn't work with gradient checkpointing, which runs layers again after the "
                "forward pass. Call model.gradient_checkpointing_disable() first."
            )
        cache = given.get("past_key_values")
        noted_layer, _ = getattr(cache, "withdrawn", (self.layer, None))
        if noted_layer != self.layer:
            raise RuntimeError(
                f"This KV cache was filled with withdrawal layer {noted_layer}, and is used now with "
                f"{self.layer}. Start with a new cache."
            )
        columns_before = 0 if cache is None else int(cache.get_seq_length())
        sequence_length = input_ids.shape[1]
        kept = None
        # A placeholder that the model itself has generated is no visual token.
        if sequence_length > 1 or columns_before == 0:
            attention_mask = given.get("attention_mask")
            if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
                attention_mask = attention_mask[:, -sequence_length:]
            else:
                attention_mask = None
            kept = keep_positions(visual_token_mask(module.config, input_ids), attention_mask)
        logits_to_keep = given.get("logits_to_keep", 0)
        only_tail_is_read = (
            kept is not None
            and "logits_to_keep" in self.signature.parameters
            and isinstance(logits_to_keep, int)
            and 0 < logits_to_keep <= kept.tail
        )
        output_hidden_states = given.get("output_hidden_states")
        if output_hidden_states is None:
            output_hidden_states = self.decoder_config.output_hidden_states
        self.forward = _Forward(
            sequence_length=sequence_length,
            kept=kept,
            columns_before=columns_before,
            restore_each_layer=bool(output_hidden_states),
            restore_at_end=not only_tail_is_read,
        )

    def end(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.forward = None

    def before_layer(self, index: int) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
            forward = self.forward
            if forward is None:
                return None
            cache = kwargs.get("past_key_values")
            if index == self.layer:
                forward.slots = self.account(forward, cache)
            if forward.slots is None:
                return None
            kwargs = dict(kwargs)
            if forward.kept is not None:
                hidden_states = args[0]
                if index == self.layer:
                    forward.full = hidden_states
                if index == self.layer or forward.restore_each_layer:
                    args = (take_hidden_states(hidden_states, forward.kept), *args[1:])
                for name in ("position_ids", "position_embeddings"):
                    if kwargs.get(name) is not None:
                        kwargs[name] = self.once(
                            forward, kwargs[name], lambda value: take_per_token(value, forward.kept)
                        )
            query_count = args[0].shape[-2]
            key_count = self.key_count(cache, index, forward.slots, query_count)
            kwargs["attention_mask"] = self.mask(
                forward, kwargs.get("attention_mask"), query_count, key_count
            )
            return args, kwargs

        return hook

    def after_layer(self, index: int) -> Any:
        last = index == len(self.layers) - 1

        def hook(module: nn.Module, args: tuple, output: Any) -> Any:
            forward = self.forward
            if forward is None or forward.kept is None or forward.full is None:
                return None
            if not forward.restore_each_layer and not (last and forward.restore_at_end):
                return None
            hidden_states = output[0] if isinstance(output, tuple) else output
            restored = put_hidden_states(forward.full, hidden_states, forward.kept)
            return (restored, *output[1:]) if isinstance(output, tuple) else restored

        return hook

    def account(self, forward: _Forward, cache: Cache | None) -> Slots | None:
        """The slots of layers from K on after this forward pass, noted in the cache too."""
        _, slots = getattr(cache, "withdrawn", (self.layer, None))
        if forward.kept is None:
            return slots
        before = forward.columns_before
        if slots is None:
            batch = forward.kept.index.shape[0]
            none = torch.empty((batch, 0), dtype=torch.long, device=forward.kept.index.device)
            slots = Slots(none, None, 0)
        slots = slots.extend(before).append(
            before + forward.kept.index, forward.kept.valid, before + forward.sequence_length
        )
        if cache is not None:
            cache.withdrawn = (self.layer, slots)  # type: ignore[attr-defined]
        return slots

    def key_count(self, cache: Cache | None, index: int, slots: Slots, query_count: int) -> int:
        """How many keys attention in layer `index` sees in this forward pass."""
        if cache is None:
            return slots.column.shape[1]
        layer = cache.layers[index]
        if layer.is_compileable:
            return layer.get_max_length()
        return layer.get_seq_length() + query_count

    def mask(
        self, forward: _Forward, mask: torch.Tensor | None, query_count: int, key_count: int
    ) -> torch.Tensor | None:
        slots = forward.slots
        assert slots is not None
        queries = None if forward.kept is None else forward.kept.index
        if mask is not None:
            return self.once(
                forward, mask, lambda value: take_mask(value, slots, queries, key_count), key_count
            )
        extended = (
            slots
            if forward.kept is not None
            else slots.extend(slots.columns + key_count - slots.column.shape[1])
        )
        return self.once(forward, None, lambda _: make_mask(extended, query_count, key_count), key_count)

    @staticmethod
    def once(forward: _Forward, value: Any, make: Callable[[Any], Any], key_count: int = 0) -> Any:
        """`make(value)`, made once in a forward pass for all layers (with as many keys)."""
        identity = (id(value), key_count)
        if identity not in forward.taken:
            forward.taken[identity] = (value, make(value))
        return forward.taken[identity][1]


def take_per_token(value: Any, kept: KeptPositions) -> Any:
    """Of position ids, shape (..., batch or 1, sequence), or cos and sin, each (..., sequence, dim)."""
    if isinstance(value, tuple):
        return tuple(take_positions(part, kept.index, -2) for part in value)
    return take_positions(value, kept.index, -1)
