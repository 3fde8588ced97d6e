"""Which positions go on without the visual tokens, and what decoder layers get for them.

A *column* is a position of the whole sequence as layers below the withdrawal layer K see it; a *slot* is a place
among the keys of layers from K on, which hold kept tokens only. Rows of a batch that keep fewer tokens than
others have empty slots on their left, as in left padding.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import StaticLayer


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
    """The mask for the layers from K on where the others need none, but these have empty slots or further keys.

    `query_column`, shape (batch or 1, queries), for causal attention; None for attention in both directions.
    The result is bool, shape (batch, 1, queries or 1, keys).
    """
    valid = torch.ones_like(keys.column, dtype=torch.bool) if keys.valid is None else keys.valid
    visible = valid[:, None, :]
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


def add_slots(slots: Slots | None, kept: KeptPositions, columns_before: int, columns_after: int) -> Slots:
    """The slots after a prefill that keeps `kept` of the columns from `columns_before` on."""
    if slots is None:
        none = torch.empty((kept.index.shape[0], 0), dtype=torch.long, device=kept.index.device)
        slots = Slots(none, None, 0)
    return slots.extend(columns_before).append(columns_before + kept.index, kept.valid, columns_after)


class LayerArguments:
    """What decoder layers without the visual tokens get in place of what they are handed, made once for all of them.

    - `kept`: the positions that layers run on; None in a forward pass of layers that have slots already, and withdraw
      nothing more: decoding.
    - `slots`: those of the layers after this pass. There may be more than `kept`, whose keys are had from elsewhere.
    - `columns_before`: columns that the KV cache held before this pass.
    - `is_flash`: whether attention takes a mask of padding alone, as flash attention does.
    """

    def __init__(
        self, kept: KeptPositions | None, slots: Slots, sequence_length: int, columns_before: int, is_flash: bool
    ) -> None:
        self.kept = kept
        self.slots = slots
        self.sequence_length = sequence_length
        self.columns_before = columns_before
        self.is_flash = is_flash
        self._made: dict[tuple, tuple[Any, Any]] = {}

    def take(self, module: nn.Module, name: str, value: Any) -> Any:
        """What a layer gets in place of an argument that has something for every token."""
        if not isinstance(value, torch.Tensor | tuple):
            return value
        identity = (name, id(value))
        if identity not in self._made:
            assert self.kept is not None
            parts = value if isinstance(value, tuple) else (value,)
            taken = []
            for part in parts:
                dim = sequence_dim(name, part, self.kept.index.shape[0], self.sequence_length, module)
                taken.append(part if dim is None else take_positions(part, self.kept.index, dim))
            self._made[identity] = (value, tuple(taken) if isinstance(value, tuple) else taken[0])
        return self._made[identity][1]

    def mask(
        self,
        module: nn.Module,
        mask: Any,
        query_count: int,
        cache_layer: Any = None,
        sees_all_columns: bool = False,
        tail_only: bool = False,
    ) -> torch.Tensor | None:
        """The attention mask of a layer, out of the one that the model hands to it.

        - `cache_layer`: of the KV cache, the one that holds the layer's keys.
        - `sees_all_columns`: whether its keys are those of a layer that withdraws nothing.
        - `tail_only`: whether its queries are the sequence's tail, not the kept positions.
        """
        if not (mask is None or isinstance(mask, torch.Tensor)):
            raise RuntimeError(
                f"withdraw doesn't understand an attention mask of type {type(mask).__name__}. "
                'Load the model with attn_implementation="sdpa" or "eager".'
            )
        aligned = self.is_flash or self.kept is None or self.kept.index.shape[1] == self.slots.count
        if mask is None and self.slots.valid is None and aligned and not sees_all_columns:
            return None  # attention among the slots is right without a mask
        columns_after = self.columns_before + self.sequence_length
        count, first_column = key_span(cache_layer, self.columns_before, self.sequence_length)
        first = first_column
        if not sees_all_columns:
            new = self.sequence_length if self.kept is None else self.kept.index.shape[1]
            count, first = key_span(cache_layer, self.slots.count_at(columns_after) - new, new)
        is_causal = getattr(module.self_attn, "is_causal", True)
        identity = ("attention_mask", id(mask), sees_all_columns, first, count, is_causal)
        if identity not in self._made:
            slots = self.slots.with_withdrawn_columns() if sees_all_columns else self.slots
            keys = slots.span(first, count)
            queries = None if self.kept is None or tail_only else self.kept.index
            if mask is not None and mask.ndim == 4 and mask.shape[2] != self.sequence_length:
                queries = None  # the model has cut it to the tail already
            made: torch.Tensor | None
            if mask is not None:
                made = take_mask(mask, keys, queries, first_column)
            elif self.is_flash:
                made = keys.valid
            else:
                last = torch.arange(columns_after - query_count, columns_after, device=keys.column.device)[None]
                columns = last if queries is None else self.columns_before + queries
                made = make_mask(keys, columns if is_causal else None)
            self._made[identity] = (mask, made)
        return self._made[identity][1]


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
