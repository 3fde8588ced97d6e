"""Which tokens of a decoder's sequence are kept, and where they are among the keys of layers that hold them alone.

A *sequence position* counts all tokens, as layers below the withdrawal layer K see them. A *cache position* counts
the keys of a layer from K on, which hold kept tokens only. Rows of a batch that keep fewer tokens than others have
empty cache positions on their left, as in left padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class KeptTokens:
    """The tokens of one prefill that are kept.

    - `index`, int64, shape (batch, kept): their positions in this prefill, ascending, right-aligned in each row.
    - `valid`, bool, shape (batch, kept): False where there is none, and `index` means nothing; None where every row
      keeps equally many.
    - `tail`: how many positions at the end of the sequence are kept in every row.
    """

    index: torch.Tensor
    valid: torch.Tensor | None
    tail: int

    @property
    def count(self) -> int:
        return self.index.shape[1]


@dataclass(frozen=True)
class CachePositions:
    """Which sequence position each cache position of a layer holds.

    - `held`, int64, shape (batch, cache positions), and `valid` as in `KeptTokens`.
    - `sequence_length`: how many sequence positions this accounts for; each later one is held.
    """

    held: torch.Tensor
    valid: torch.Tensor | None
    sequence_length: int

    @property
    def count(self) -> int:
        return self.held.shape[1]

    def count_at(self, sequence_length: int) -> int:
        """How many cache positions there are when there are that many sequence positions."""
        return self.count + sequence_length - self.sequence_length

    def append(self, held: torch.Tensor, valid: torch.Tensor | None, sequence_length: int) -> CachePositions:
        """The same with further cache positions to the right, accounting for so many sequence positions."""
        if self.valid is not None or valid is not None:
            valid = torch.cat([_all_valid(self.held, self.valid), _all_valid(held, valid)], dim=1)
        return CachePositions(torch.cat([self.held, held], dim=1), valid, sequence_length)

    def extend(self, sequence_length: int) -> CachePositions:
        """The same, accounting for so many sequence positions, of which all new ones are held."""
        new = torch.arange(self.sequence_length, sequence_length, device=self.held.device)
        return self.append(new.expand(self.held.shape[0], -1), None, sequence_length)

    def span(self, first: int, count: int) -> CachePositions:
        """`count` cache positions from `first` on, further ones included where there are fewer."""
        missing = max(0, first + count - self.count)
        positions = self.extend(self.sequence_length + missing)
        chosen = slice(first, first + count)
        valid = None if positions.valid is None else positions.valid[:, chosen]
        return CachePositions(positions.held[:, chosen], valid, positions.sequence_length)

    def among(self, others: CachePositions | None) -> CachePositions:
        """For layers that hold `others`, or every sequence position: those that aren't held here are empty."""
        batch, device = self.held.shape[0], self.held.device
        held = torch.zeros((batch, self.sequence_length), dtype=torch.bool, device=device)
        held = held.scatter_reduce(1, self.held, _all_valid(self.held, self.valid), reduce="amax")
        if others is None:
            everywhere = torch.arange(self.sequence_length, device=device).expand(batch, -1)
            return CachePositions(everywhere, held, self.sequence_length)
        others = others.extend(self.sequence_length)
        held = held.gather(1, others.held) & _all_valid(others.held, others.valid)
        return CachePositions(others.held, held, self.sequence_length)

    def rows(self, rows: torch.Tensor) -> CachePositions:
        rows = rows.to(self.held.device)
        valid = None if self.valid is None else self.valid[rows]
        return CachePositions(self.held[rows], valid, self.sequence_length)


def _all_valid(index: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    return torch.ones_like(index, dtype=torch.bool) if valid is None else valid


def keep_tokens(leaving: torch.Tensor, padding_mask: torch.Tensor | None) -> KeptTokens | None:
    """Which tokens to keep, from bool or 0/1 tensors of shape (batch, sequence); None if none is leaving. Padding isn't
    kept. Waits for the device once."""
    keep = ~leaving
    if padding_mask is not None:
        keep &= padding_mask.bool()
    counts = keep.sum(1)
    tail = keep.all(0).flip(0).cumprod(0).sum()
    any_leaving, most, fewest, tail_length = torch.stack(
        [leaving.any().long(), counts.max(), counts.min(), tail]
    ).tolist()
    if not any_leaving:
        return None
    width = max(most, 1)  # layers can't run on no token at all
    # A stable sort of False and True puts what is kept at the end, in order.
    index = keep.byte().argsort(dim=1, stable=True)[:, keep.shape[1] - width :]
    return KeptTokens(index, keep.gather(1, index) if fewest < width else None, tail_length)


def add_kept(positions: CachePositions | None, kept: KeptTokens, before: int, after: int) -> CachePositions:
    """The cache positions after a prefill that keeps `kept` of the sequence positions `before` to `after` - 1."""
    if positions is None:
        positions = CachePositions(kept.index[:, :0], None, 0)
    return positions.extend(before).append(before + kept.index, kept.valid, after)


def gather_positions(tensor: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
    """Gather `index`, shape (batch, kept), along the sequence dimension `dim`, row by row; the batch is the dimension
    before it, and of size 1 where it serves all rows."""
    dim = dim % tensor.ndim
    batch, kept = index.shape
    before, after = tensor.shape[: dim - 1], tensor.shape[dim + 1 :]
    rows = tensor.expand(*before, batch, *tensor.shape[dim:])
    index = index.view(*(1 for _ in before), batch, kept, *(1 for _ in after)).to(tensor.device)
    return rows.gather(dim, index.expand(*before, batch, kept, *after))


def gather_hidden_states(hidden_states: torch.Tensor, kept: KeptTokens) -> torch.Tensor:
    """Hidden states of the kept tokens, shape (..., batch, kept, hidden); zero where there is none."""
    gathered = gather_positions(hidden_states, kept.index, -2)
    if kept.valid is not None:  # no key or value of a visual token may come about, masked or not
        gathered = gathered.masked_fill(~kept.valid[..., None].to(gathered.device), 0)
    return gathered


def scatter_hidden_states(full: torch.Tensor, hidden_states: torch.Tensor, kept: KeptTokens) -> torch.Tensor:
    """`full`, shape (..., batch, sequence, hidden), with those of the kept tokens replaced by `hidden_states`, on the
    device of these: layers may be on several."""
    full = full.to(hidden_states.device)
    if kept.valid is not None:
        unchanged = gather_positions(full, kept.index, -2)
        hidden_states = torch.where(kept.valid[..., None].to(full.device), hidden_states, unchanged)
    return full.scatter(-2, kept.index[..., None].to(full.device).expand_as(hidden_states), hidden_states)
