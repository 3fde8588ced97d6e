"""Visual tokens withdrawal: from decoder layer K on, a model goes on without its visual tokens.

Lin, Lin, Lin, Ji, "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid
Inference", AAAI 2025, arXiv 2405.05803; authors' code: github lzhxmu/VTW. This module is the only one of
the project that changes a forward pass. It does so with hooks on the model and its decoder layers.

Words used below: a *column* is a position of the whole sequence as layers below K see it; a *slot* is a place
among the keys of layers from K on, which hold kept tokens only. Rows of a batch that keep fewer tokens than
others have empty slots on their left, as in left padding.
"""

import functools
import inspect
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import Cache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, StaticLayer

from vtw_demo.segments import visual_token_ids, visual_token_mask


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


def check_layer(layer: int, layer_count: int) -> None:
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise TypeError(f"The withdrawal layer must be an integer; this is {layer!r}.")
    if layer == 0:
        raise ValueError(
            f"The withdrawal layer must be from 1 to {layer_count}, the number of decoder layers; this is 0. "
            "At 0 the model would never see the picture: leave the picture out of the prompt instead."
        )
    if not 1 <= layer <= layer_count:
        raise ValueError(
            f"The withdrawal layer must be from 1 to {layer_count}, the number of decoder layers; this is {layer}."
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
    """Which column each slot of a layer holds.

    - `column`, int64, shape (batch, slots), and `valid` as in `KeptPositions`.
    - `columns`: how many columns this accounts for; each later column has the next slot.
    """

    column: torch.Tensor
    valid: torch.Tensor | None
    columns: int

    @property
    def count(self) -> int:
        return self.column.shape[1]

    def count_at(self, columns: int) -> int:
        """How many slots there are when there are that many columns."""
        return self.count + columns - self.columns

    def append(self, column: torch.Tensor, valid: torch.Tensor | None, columns: int) -> "Slots":
        """The same with further slots to the right, accounting for so many columns."""
        if self.valid is not None or valid is not None:
            old = torch.ones_like(self.column, dtype=torch.bool) if self.valid is None else self.valid
            new = torch.ones_like(column, dtype=torch.bool) if valid is None else valid
            valid = torch.cat([old, new], dim=1)
        return Slots(torch.cat([self.column, column], dim=1), valid, columns)

    def extend(self, columns: int) -> "Slots":
        """The same, accounting for so many columns, of which all new ones are kept."""
        batch = self.column.shape[0]
        new = torch.arange(self.columns, columns, device=self.column.device).expand(batch, -1)
        return self.append(new, None, columns)

    def span(self, first: int, count: int) -> "Slots":
        """The slots from `first` on, `count` in number, further ones included where there are fewer."""
        missing = first + count - self.count
        slots = self.extend(self.columns + missing) if missing > 0 else self
        chosen = slice(first, first + count)
        valid = None if slots.valid is None else slots.valid[:, chosen]
        return Slots(slots.column[:, chosen], valid, slots.columns)

    def with_withdrawn_columns(self) -> "Slots":
        """Slots for all columns, those empty that have no slot here: for layers that hold every column."""
        batch = self.column.shape[0]
        held = torch.zeros((batch, self.columns), dtype=torch.bool, device=self.column.device)
        valid = torch.ones_like(self.column, dtype=torch.bool) if self.valid is None else self.valid
        held = held.scatter_reduce(1, self.column, valid, reduce="amax")
        return Slots(torch.arange(self.columns, device=held.device).expand(batch, -1), held, self.columns)

    def rows(self, rows: torch.Tensor) -> "Slots":
        """The same for these rows of the batch."""
        return Slots(self.column[rows], None if self.valid is None else self.valid[rows], self.columns)


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


def take_mask(mask: torch.Tensor, keys: Slots, queries: torch.Tensor | None, first_column: int) -> torch.Tensor:
    """An attention mask for the layers from K on, out of the mask for layers that keep every token.

    - `mask`, shape (batch or 1, heads or 1, queries, columns), bool (True: attend) or float (added), or of
      shape (batch, columns), 1 for what isn't padding; its columns are those from `first_column` on.
    - `queries`, shape (batch, kept): the rows to take; None takes all.

    The result has one column for each of `keys`; those beyond the mask's columns are blocked.
    """
    column = keys.column - first_column
    visible = (column >= 0) & (column < mask.shape[-1])
    if keys.valid is not None:
        visible = visible & keys.valid
    column = column.clamp(0, mask.shape[-1] - 1)
    blocked = torch.finfo(mask.dtype).min if mask.is_floating_point() else 0
    if mask.ndim == 2:
        return take_positions(mask, column, 1).masked_fill(~visible, blocked)
    mask = mask.expand(column.shape[0], -1, -1, -1)
    if queries is not None:
        mask = mask.gather(2, queries[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
    taken = mask.gather(3, column[:, None, None, :].expand(-1, *mask.shape[1:3], -1))
    return taken.masked_fill(~visible[:, None, None, :], blocked)


def make_mask(keys: Slots, query_column: torch.Tensor | None) -> torch.Tensor:
    """The mask for the layers from K on where the others need none, but these have empty slots.

    `query_column`, shape (batch or 1, queries), for causal attention; None for attention in both directions.
    The result is bool, shape (batch, 1, queries or 1, keys).
    """
    assert keys.valid is not None
    visible = keys.valid[:, None, :]
    if query_column is not None:
        visible = visible & (keys.column[:, None, :] <= query_column[:, :, None])
    return visible[:, None]


def key_span(layer: Any, held: int, query_count: int) -> tuple[int, int]:
    """How many keys attention sees in a layer of a KV cache that has held `held` tokens, and the first one.

    `layer` is the cache's layer, None without a cache. This is what transformers' `get_mask_sizes` answers,
    for any number of tokens held. Transformers sizes masks by the tokens that a layer has held, which is why
    a layer that lost some must answer as if it hadn't.
    """
    if layer is None:
        return held + query_count, 0
    static = isinstance(layer, StaticLayer)
    if static and not layer.is_sliding:
        return layer.max_cache_len, 0
    window = (layer.max_cache_len if static else layer.sliding_window) if layer.is_sliding else None
    first = 0 if window is None else max(held - window + 1, 0)
    count = held - first + query_count
    return (max(count, layer.max_cache_len) if static else count), first


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
    slots: Slots | None = None
    """None where layers from K on see all that the others see."""
    full: torch.Tensor | None = None
    """The hidden states that enter layer K."""
    only_tail: bool = False
    """True once the model itself has cut the sequence to its tail."""
    made: dict[tuple, tuple[Any, Any]] = field(default_factory=dict)
    """What layers from K on get in place of what they are handed, made once for all of them."""

    @property
    def columns_after(self) -> int:
        return self.columns_before + self.sequence_length


class _Withdrawal:
    """The hooks of one `withdraw` context."""

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

    def begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given = dict(zip(self.parameters, args, strict=False)) | kwargs
        input_ids = given.get("input_ids")
        if input_ids is None:
            raise ValueError(
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
            kept = keep_positions(
                visual_token_mask(self.model.config, input_ids), own_padding_mask(given, sequence_length)
            )
            if kept is None and has_visual_input(given):
                raise ValueError(
                    f"This forward pass of {type(self.model).__name__} is handed visual input, but none of "
                    f"its tokens is one of the placeholders {visual_token_ids(self.model.config)}, so the "
                    "visual tokens can't be found."
                )
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
            slots=slots,
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
        if index == self.layer and forward.kept is not None:
            forward.slots = add_slots(forward.slots, forward.kept, forward.columns_before, forward.columns_after)
            forward.full = hidden_states
        if forward.slots is None:
            return None
        if forward.kept is not None:
            whole = index == self.layer or forward.restore_each_layer
            length = forward.sequence_length if whole else forward.kept.index.shape[1]
            forward.only_tail = forward.only_tail or hidden_states.shape[-2] != length
            if not forward.only_tail:
                if whole:
                    hidden_states = take_hidden_states(hidden_states, forward.kept)
                for name, value in tuple(kwargs.items()):
                    if name != "attention_mask":
                        kwargs[name] = self.take_argument(forward, module, name, value)
        if self.is_flash:
            check_flash_window(module, forward.columns_after)
            kwargs["position_ids"] = None  # it takes a gap in the positions for the start of another sequence
        kwargs["attention_mask"] = self.mask(
            forward, index, module, cache, kwargs.get("attention_mask"), hidden_states.shape[-2]
        )
        return (hidden_states,), kwargs

    def after_layer(self, index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        forward = self.forward
        if forward is None or forward.kept is None or forward.slots is None:
            return None
        cache = kwargs.get("past_key_values")
        if cache is not None:
            note_slots(cache.layers[index], forward.slots)
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
        position = forward.columns_before + forward.kept.index
        assumed = forward.columns_before + torch.arange(position.shape[1], device=position.device)
        ratio = attention_temperature(attention, position) / attention_temperature(attention, assumed)
        return (output * ratio[..., None]).to(output.dtype)

    def take_argument(self, forward: _Forward, module: nn.Module, name: str, value: Any) -> Any:
        """What a layer from K on gets in place of an argument that has something for every token."""
        if not isinstance(value, torch.Tensor | tuple):
            return value
        identity = (name, id(value))
        if identity not in forward.made:
            kept = forward.kept
            assert kept is not None
            parts = value if isinstance(value, tuple) else (value,)
            taken = []
            for part in parts:
                dim = sequence_dim(name, part, kept.index.shape[0], forward.sequence_length, module)
                taken.append(part if dim is None else take_positions(part, kept.index, dim))
            forward.made[identity] = (value, tuple(taken) if isinstance(value, tuple) else taken[0])
        return forward.made[identity][1]

    def mask(
        self,
        forward: _Forward,
        index: int,
        module: nn.Module,
        cache: Cache | None,
        mask: Any,
        query_count: int,
    ) -> torch.Tensor | None:
        """The attention mask of layer `index`, out of the one that the model hands to it."""
        if not (mask is None or isinstance(mask, torch.Tensor)):
            raise RuntimeError(
                f"withdraw doesn't understand an attention mask of type {type(mask).__name__}. "
                'Load the model with attn_implementation="sdpa" or "eager".'
            )
        assert forward.slots is not None
        source = self.key_sources[index]
        shares_all_columns = source < self.layer
        if mask is None and forward.slots.valid is None and not shares_all_columns:
            return None  # attention among the slots is right without a mask
        layer = cache.layers[source] if cache is not None and source < len(cache.layers) else None
        count, first_column = key_span(layer, forward.columns_before, forward.sequence_length)
        first = first_column
        if not shares_all_columns:
            new = forward.sequence_length if forward.kept is None else forward.kept.index.shape[1]
            count, first = key_span(layer, forward.slots.count_at(forward.columns_after) - new, new)
        is_causal = getattr(module.self_attn, "is_causal", True)
        identity = ("attention_mask", id(mask), shares_all_columns, first, count, is_causal)
        if identity not in forward.made:
            slots = forward.slots.with_withdrawn_columns() if shares_all_columns else forward.slots
            keys = slots.span(first, count)
            queries = None if forward.kept is None or forward.only_tail else forward.kept.index
            if mask is not None and mask.ndim == 4 and mask.shape[2] != forward.sequence_length:
                queries = None  # the model has cut it to the tail already
            made: torch.Tensor | None
            if mask is not None:
                made = take_mask(mask, keys, queries, first_column)
            elif self.is_flash:
                made = keys.valid
            else:
                after = forward.columns_after
                last = torch.arange(after - query_count, after, device=keys.column.device)[None]
                columns = last if queries is None else forward.columns_before + queries
                made = make_mask(keys, columns if is_causal else None)
            forward.made[identity] = (mask, made)
        return forward.made[identity][1]


def add_slots(slots: Slots | None, kept: KeptPositions, columns_before: int, columns_after: int) -> Slots:
    """The slots after a prefill that keeps `kept` of the columns from `columns_before` on."""
    if slots is None:
        none = torch.empty((kept.index.shape[0], 0), dtype=torch.long, device=kept.index.device)
        slots = Slots(none, None, 0)
    return slots.extend(columns_before).append(columns_before + kept.index, kept.valid, columns_after)


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


def sequence_dim(name: str, value: Any, batch: int, sequence_length: int, module: nn.Module) -> int | None:
    """Along which dimension an argument of a decoder layer has an entry for each token; None for none."""
    if not isinstance(value, torch.Tensor) or sequence_length not in value.shape:
        return None
    if name == "position_ids":  # (batch or 1, sequence), or three or four of these for M-RoPE
        return -1
    if name == "position_embeddings":  # (batch or 1, sequence, dim), or three of these for M-RoPE
        return -2
    for dim in range(1, value.ndim):
        if value.shape[dim] == sequence_length and value.shape[dim - 1] in (1, batch):
            return dim
    raise RuntimeError(
        f"withdraw doesn't understand the argument {name} of {type(module).__name__}, of shape "
        f"{tuple(value.shape)} for {batch} rows of {sequence_length} tokens."
    )


def check_flash_window(module: nn.Module, columns: int) -> None:
    """Raise RuntimeError where flash attention would count a sliding window in kept tokens."""
    window = getattr(module.self_attn, "sliding_window", None)
    if window is not None and columns > window:
        raise RuntimeError(
            f"With flash attention, a sliding window of {window} tokens would be counted without the "
            f'withdrawn ones, among {columns}. Load the model with attn_implementation="sdpa" or "eager".'
        )


# The family cases: what single families do beyond handing every layer the same sequence of tokens.

INNER_GENERATE = ("blip-2", "instructblip", "instructblipvideo", "kosmos-2", "kosmos-2.5")
"""Model types whose `generate` hands embeddings to a language model's own, past the model's forward."""

ATTENTION_TYPES = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of decoder layers in which a token that is gone is one that no other attends to."""


def find_decoder(model: PreTrainedModel) -> Any:
    """The module that runs the decoder layers."""
    decoder = model.get_decoder()
    # llama4 answers with a language model, head included.
    return decoder if hasattr(decoder, "layers") else getattr(decoder, "model", decoder)


def check_family(model: PreTrainedModel) -> None:
    """Raise ValueError for a model in which withdrawal can't mean anything, or that isn't understood."""
    name, config = type(model).__name__, model.config
    if config.is_encoder_decoder:
        raise ValueError(
            f"{name} can't be used with withdraw: it is an encoder-decoder, and its decoder has no visual tokens."
        )
    if config.model_type in INNER_GENERATE:
        raise ValueError(
            f"{name} can't be used with withdraw: its generate hands embeddings, not token ids, to the "
            "generate of its language model, where visual tokens can't be found."
        )
    decoder = find_decoder(model)
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(
            f"{name} can't be used with withdraw: its decoder, a {type(decoder).__name__}, has no decoder "
            "layers in `layers`."
        )
    kinds = set(getattr(decoder.config, "layer_types", None) or ATTENTION_TYPES) - ATTENTION_TYPES
    without = next((layer for layer in layers if not hasattr(layer, "self_attn")), None)
    if kinds or without is not None:
        found = f"layers of type {sorted(kinds)}" if kinds else f"a {type(without).__name__}"
        raise ValueError(
            f"{name} can't be used with withdraw: not all of its decoder layers attend to the tokens of "
            f"their own sequence; it has {found} (cross-attention, convolution or linear attention)."
        )
    visual_token_ids(config)


def without_late_features(kwargs: dict[str, Any], layer: int) -> dict[str, Any]:
    """Arguments of a decoder without the visual features that it would add from layer K on.

    Deepstack (qwen3_vl, granite4_vision, granite_docling): features of further vision layers are added to the
    visual tokens between decoder layers: a list has those that follow layer 0, 1, ..., a dict those that
    precede a layer.
    """
    late = dict(kwargs)
    if isinstance(following := kwargs.get("deepstack_visual_embeds"), list | tuple):
        late["deepstack_visual_embeds"] = following[:layer]
    if isinstance(preceding := kwargs.get("deepstack_features"), dict):
        late["deepstack_features"] = {index: part for index, part in preceding.items() if index <= layer}
    return late


def key_sources(config: PreTrainedConfig, layer_count: int) -> list[int]:
    """For each decoder layer, the layer whose keys and values it attends to.

    That is itself, but in gemma3n and gemma4 the last layers use those of an earlier one of their type. Where
    that one is below K, they see the keys of visual tokens too, which have to be masked.
    """
    modes = getattr(config, "kv_sharing_modes", None) or [None] * layer_count
    stored: dict[str, int] = {}
    sources = []
    for index, mode in enumerate(modes):
        if mode == "store":
            stored[config.layer_types[index]] = index
        sources.append(stored[config.layer_types[index]] if mode == "reuse" else index)
    return sources


def scales_attention_by_position(layer: Any) -> bool:
    """Whether a layer scales its queries by positions that it counts itself (llama4, layers without RoPE)."""
    attention = layer.self_attn
    return bool(getattr(attention, "attn_temperature_tuning", False)) and not attention.use_rope


def attention_temperature(attention: Any, position: torch.Tensor) -> torch.Tensor:
    """The factor by which llama4 scales the query at a position, counted from 0."""
    steps = torch.floor((position.float() + 1.0) / attention.floor_scale)
    return torch.log1p(steps) * attention.attn_scale + 1.0
