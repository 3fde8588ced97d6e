"""What decoder layers are handed once tokens have left: arguments and attention masks of those that are kept."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import StaticLayer

from vtw_demo.withdrawal.architectures import check_flash_window, find_attention
from vtw_demo.withdrawal.cache import key_span
from vtw_demo.withdrawal.kept_tokens import CachePositions, KeptTokens, gather_positions


@functools.cache
def parameter_names(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)[1:]


def named_arguments(module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a module's forward is called with, by the names of its parameters."""
    return {**dict(zip(parameter_names(type(module).forward), args, strict=False)), **kwargs}


def hidden_states_of(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def tile(tensor: torch.Tensor, times: int, dim: int = 0) -> torch.Tensor:
    return tensor if times == 1 else torch.cat([tensor] * times, dim=dim)


@dataclass
class LayerInputs:
    """What decoder layers get in one forward pass in place of what they are handed, made once for all of them.

    - `sequence_length`: how many tokens the pass was handed.
    - `past_length`: how many sequence positions the KV cache accounted for before it.
    - `is_flash`: whether attention takes a mask of padding alone, as flash attention does.
    - `kept`: the tokens that layers run on; None where none leaves in this pass: decoding, or no image.
    - `positions`: of the layers' keys after this pass; None where none has left. There may be more than `kept`, whose
      keys are had from elsewhere.
    """

    sequence_length: int
    past_length: int
    is_flash: bool
    kept: KeptTokens | None = None
    positions: CachePositions | None = None
    _made: dict[tuple, tuple[Any, Any]] = field(default_factory=dict)

    def replace(
        self,
        module: nn.Module,
        given: Mapping[str, Any],
        query_count: int,
        keys_of: LayerInputs | None,
        cache_layer: Any = None,
        times: int = 1,
    ) -> dict[str, Any]:
        """What the layer `module` gets in place of `given`, its arguments by name without the hidden states.

        - `query_count`: how many tokens it runs on: the kept ones, or the sequence's tail, to which the model cut it.
        - `keys_of`: what the layer gets whose keys it attends to, mostly this very object; None for one that no tokens
          have left.
        - `cache_layer`: of the KV cache, the one that holds these keys.
        - `times`: how many times the batch runs through it, stacked.
        """
        replaced = dict(given)
        if self.kept is not None and query_count == self.kept.count:
            for name in given.keys() - {"attention_mask", "cache_position"}:
                replaced[name] = self.gather(module, name, given[name], times)
        if given.get("cache_position") is not None:
            replaced["cache_position"] = self.cache_position(given["cache_position"], query_count, cache_layer)
        if self.is_flash:
            check_flash_window(module, self.past_length + self.sequence_length)
            replaced["position_ids"] = None  # it takes a gap in the positions for the start of another sequence
        mask = self.mask(module, given.get("attention_mask"), query_count, cache_layer, keys_of)
        replaced["attention_mask"] = None if mask is None else tile(mask, times)
        return replaced

    def gather(self, module: nn.Module, name: str, value: Any, times: int) -> Any:
        if type(value) in (tuple, list):
            return type(value)(self.gather(module, name, part, times) for part in value)
        if type(value) is dict and name != "shared_kv_states":  # keys, not queries
            return {key: self.gather(module, name, part, times) for key, part in value.items()}
        assert self.kept is not None
        index = self.kept.index
        dim = sequence_dim(name, value, len(index), self.sequence_length, module)
        if dim is None:
            return value
        return tile(self._once((name, id(value)), value, lambda: gather_positions(value, index, dim)), times, dim - 1)

    def cache_position(self, given: torch.Tensor, query_count: int, cache_layer: Any) -> torch.Tensor:
        """By which layers of transformers 5.0 count their queries, and static caches place keys."""
        assert self.positions is not None
        first = given[-1] + 1 - query_count
        if isinstance(cache_layer, StaticLayer):
            first = first - self.positions.sequence_length + self.positions.count
        elif self.kept is not None and query_count == self.kept.count:
            first = given[0]
        return first + torch.arange(query_count, device=given.device)

    def mask(
        self, module: nn.Module, mask: Any, query_count: int, cache_layer: Any, keys_of: LayerInputs | None
    ) -> torch.Tensor | None:
        if not (mask is None or isinstance(mask, torch.Tensor)):
            raise RuntimeError(
                f"withdraw doesn't understand an attention mask of type {type(mask).__name__}. "
                'Load the model with attn_implementation="sdpa" or "eager".'
            )
        if find_attention(module) is None:
            return self.padding(module, mask, query_count)
        positions, kept, after = self.positions, self.kept, self.past_length + self.sequence_length
        assert positions is not None
        aligned = self.is_flash or kept is None or kept.count == positions.count
        if mask is None and positions.valid is None and aligned and keys_of is self:
            return None  # attention among the kept tokens is right without a mask
        count, mask_first = key_span(cache_layer, self.past_length, self.sequence_length)
        first, others = mask_first, None
        if keys_of is not None and (others := keys_of.positions) is not None:
            new = self.sequence_length if keys_of.kept is None else keys_of.kept.count
            count, first = key_span(cache_layer, others.count_at(after) - new, new)
        is_causal = getattr(find_attention(module), "is_causal", True)

        def make() -> torch.Tensor | None:
            keys = (positions if keys_of is self else positions.among(others)).span(first, count)
            queries = kept.index if kept is not None and query_count == kept.count else None
            if mask is not None:
                if mask.ndim == 4 and mask.shape[2] != self.sequence_length:
                    queries = None  # the model has cut it to the tail already
                return gather_mask(mask, keys, queries, mask_first)
            if self.is_flash:
                return keys.valid
            last = torch.arange(after - query_count, after, device=keys.held.device)[None]
            at = last if queries is None else self.past_length + queries
            return make_mask(keys, at if is_causal else None)

        return self._once(("attention_mask", id(mask), query_count, id(keys_of), first, count, is_causal), mask, make)

    def padding(self, module: nn.Module, mask: torch.Tensor | None, query_count: int) -> torch.Tensor | None:
        """The mask of a recurrent layer or a convolution: (batch, queries), what of its own sequence isn't padding."""
        if self.kept is None or query_count != self.kept.count:
            return mask
        if self.kept.valid is not None and self.past_length:
            raise RuntimeError(
                "In a later part of a prompt, rows keep different numbers of tokens, or none, and the gaps would "
                f"change what a {type(module).__name__} remembers. Hand the whole prompt in one forward pass."
            )
        return self.kept.valid

    def _once(self, identity: tuple, value: Any, make: Callable[[], Any]) -> Any:
        if identity not in self._made:
            self._made[identity] = (value, make())  # the value lives on, so that no other one gets its id
        return self._made[identity][1]


def gather_mask(
    mask: torch.Tensor, keys: CachePositions, queries: torch.Tensor | None, mask_first: int
) -> torch.Tensor:
    """An attention mask for layers that hold kept tokens only, with an entry for each of `keys`; keys beyond the given
    mask are blocked.

    - `mask`, shape (batch or 1, heads or 1, queries, keys), bool (True: attend) or float (added), or of shape
      (batch, keys), 1 for what isn't padding; its keys are the sequence positions from `mask_first` on.
    - `queries`, shape (batch, kept): the rows to take; None takes all.
    """
    key = keys.held - mask_first
    visible = (key >= 0) & (key < mask.shape[-1])
    if keys.valid is not None:
        visible = visible & keys.valid
    key = key.clamp(0, mask.shape[-1] - 1)
    blocked = torch.finfo(mask.dtype).min if mask.is_floating_point() else 0
    if mask.ndim == 2:
        return gather_positions(mask, key, 1).masked_fill(~visible, blocked)
    mask = mask.expand(key.shape[0], -1, -1, -1)
    if queries is not None:
        mask = mask.gather(2, queries[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
    gathered = mask.gather(3, key[:, None, None, :].expand(-1, *mask.shape[1:3], -1))
    return gathered.masked_fill(~visible[:, None, None, :], blocked)


def make_mask(keys: CachePositions, query_positions: torch.Tensor | None) -> torch.Tensor:
    """The mask where the model has none, but there are empty cache positions or further keys: bool, shape (batch, 1,
    queries or 1, keys). `query_positions`, shape (batch or 1, queries): None for attention in both directions.
    """
    valid = torch.ones_like(keys.held, dtype=torch.bool) if keys.valid is None else keys.valid
    visible = valid[:, None, :]
    if query_positions is not None:
        visible = visible & (keys.held[:, None, :] <= query_positions[:, :, None])
    return visible[:, None]


def sequence_dim(name: str, value: Any, batch: int, sequence_length: int, module: nn.Module) -> int | None:
    """Along which dimension an argument of a decoder layer has an entry for each token; None for none."""
    if not isinstance(value, torch.Tensor) or sequence_length not in value.shape or sequence_length == 1:
        return None
    if name == "prev_topk_indices" and getattr(find_attention(module), "indexer", None) is not None:
        return None  # of another layer; one with an indexer of its own doesn't read it
    if name == "position_ids":  # (batch or 1, sequence), or three or four of these for M-RoPE
        return value.ndim - 1
    if name in ("position_embeddings", "per_layer_input"):  # (batch or 1, sequence, dim), or three of these for M-RoPE
        return value.ndim - 2
    dims = [dim for dim in range(1, value.ndim) if value.shape[dim] == sequence_length]
    # A square may be a mask, and places of keys aren't those of kept ones.
    if len(dims) == 1 and value.shape[dims[0] - 1] in (1, batch) and not name.endswith(("indices", "index")):
        return dims[0]
    raise RuntimeError(
        f"withdraw doesn't understand the argument {name} of {type(module).__name__}, of shape "
        f"{tuple(value.shape)} for {batch} rows of {sequence_length} tokens. Leave it out, or withdraw at K = L."
    )
