"""KV caches whose layers from K on hold the keys and values of kept tokens only, or the state that these leave."""

import functools
import inspect
from abc import ABC
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import Cache, cache_utils
from transformers.cache_utils import CacheLayerMixin, StaticLayer

from vtw_demo.withdrawal.kept_tokens import CachePositions

_StateLayer: Any = getattr(cache_utils, "LinearAttentionCacheLayerMixin", ABC)  # up to transformers 5.9 there is none


class PrunedStateLayer(_StateLayer):
    """Mixed into the class of a KV cache's layer that holds the state of a recurrent layer, or of a convolution."""

    positions: CachePositions | None = None
    is_expected = False

    @property
    def conv_states(self) -> Any:
        _check_expected(self)
        return self.__dict__["conv_states"]

    def reset(self) -> None:
        self.positions = None
        super().reset()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.is_expected = True
        super().reorder_cache(beam_idx)
        self.is_expected = False


class PrunedCacheLayer(CacheLayerMixin):
    """Mixed into the class of a KV cache's layer that holds kept tokens only. Asked for its length, it counts the
    others too: models and `generate` size masks and count positions by that, from the first layer of its kind.
    """

    positions: CachePositions | None = None
    is_expected = False
    """Whether the next keys come from a layer that has been handed what goes with kept tokens."""

    def update(self, *args: Any, **kwargs: Any) -> Any:
        _check_expected(self)
        self.is_expected = False
        return super().update(*args, **kwargs)  # type: ignore[safe-super]

    def get_seq_length(self) -> int:
        missing = 0 if self.positions is None else self.positions.sequence_length - self.positions.count
        return super().get_seq_length() + missing  # type: ignore[safe-super]

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        count = query_length if isinstance(query_length, int) else len(query_length)  # positions, in transformers 5.0
        return key_span(self, self.get_seq_length(), count)

    def reset(self) -> None:
        super().reset()
        self.positions = None

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self.select_rows(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self.select_rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        if self.positions is not None:
            self.select_rows(torch.arange(len(self.positions.held)).repeat_interleave(repeats))

    def select_rows(self, rows: torch.Tensor) -> None:
        if self.positions is not None:
            self.positions = self.positions.rows(rows)


_PRUNED = PrunedCacheLayer, PrunedStateLayer


def _check_expected(layer: Any) -> None:
    if layer.positions is not None and not layer.is_expected:
        raise RuntimeError(
            "This KV cache was filled inside `with withdraw(...)`, and the block has been left since, in this "
            "thread or another. Leave it when the generations of all threads that began inside have ended."
        )


@functools.cache
def _pruned_class(layer_class: type) -> type:
    # Without a layer type of its own, so that transformers doesn't take it for the class of new layers.
    mixed_in = PrunedCacheLayer if issubclass(layer_class, CacheLayerMixin) else PrunedStateLayer
    return type(layer_class)(f"Pruned{layer_class.__name__}", (mixed_in, layer_class), {"_layer_type": None})


def note_positions(cache: Any, index: int, positions: CachePositions, at: tuple[int, ...]) -> None:
    """Make the layer `index` of a KV cache know which sequence positions it holds, where tokens leave before each of
    the layers `at`."""
    if cache is None:
        return
    if index >= len(cache.layers):  # up to transformers 5.17, one that uses another's keys and values
        cache.noted = getattr(cache, "noted", {}) | {index: (at, positions)}
        return
    layer: Any = cache.layers[index]
    # A layer that uses another's keys and values has no lengths to answer for.
    if isinstance(layer, CacheLayerMixin | _StateLayer) and not isinstance(layer, _PRUNED):
        layer.__class__ = _pruned_class(type(layer))  # type: ignore[arg-type]
    layer.positions, layer.pruned_at = positions, at


def noted_positions(cache: Cache) -> tuple[tuple[int, ...], dict[int, CachePositions]]:
    """Before which layers tokens left when a KV cache was filled, and from each of these on the cache positions; none
    where none has left."""
    layers: list[Any] = cache.layers
    noted: dict[int, tuple[tuple[int, ...], CachePositions]] = dict(getattr(cache, "noted", {}))
    for index, layer in enumerate(layers):
        if getattr(layer, "positions", None) is not None:
            noted[index] = layer.pruned_at, layer.positions
    at = next((at for at, _ in noted.values()), ())
    found = {}
    for first, after in zip(at, (*at, max(noted, default=0) + 1)[1:], strict=True):
        # Those that hold keys follow where beams reorder rows.
        of_stage = [index for index in range(first, after) if index in noted]
        holding = [index for index in of_stage if index < len(layers) and isinstance(layers[index], PrunedCacheLayer)]
        if of_stage:
            found[first] = noted[(holding or of_stage)[0]][1]
    return at, found


def expect_update(layer: Any, is_expected: bool = True) -> None:
    """Let the layer of a KV cache take what one forward pass leaves, or no longer."""
    if isinstance(layer, _PRUNED):
        layer.is_expected = is_expected


def find_cache(given: Mapping[str, Any]) -> Cache | None:
    """The KV cache among a module's arguments, whatever its name."""
    return next((value for value in given.values() if isinstance(value, Cache)), None)


@functools.cache
def cache_parameter(forward: Callable[..., Any]) -> str | None:
    """The name under which a module's forward takes the KV cache; None where its annotations don't tell."""
    parameters = inspect.signature(forward).parameters.values()
    return next((parameter.name for parameter in parameters if "Cache" in str(parameter.annotation)), None)


def find_cache_layer(given: Mapping[str, Any], index: int) -> Any:
    """The KV cache's layer of this index among a module's arguments; None if there is none, or none yet."""
    cache = find_cache(given)
    return cache.layers[index] if cache is not None and index < len(cache.layers) else None


def count_positions(cache: Cache | None, sequence_length: int) -> int:
    """How many sequence positions a KV cache accounts for before a forward pass of so many tokens."""
    if cache is None:
        return 0
    length = cache.get_seq_length()
    if isinstance(length, int):
        return length
    # A static cache counts on the device, where asking would wait for it; its sliding layers count here too.
    for layer in cache.layers:
        if getattr(layer, "is_sliding", False):
            return layer.get_seq_length()
    # In decoding, masks are as wide as the cache, and an upper bound does.
    return int(length) if sequence_length > 1 else cache.get_max_length() - 1


def key_span(layer: Any, held: int, query_count: int) -> tuple[int, int]:
    """How many keys attention sees in a layer of a KV cache (None without one) that has held `held` tokens, and the
    first one: what transformers' `get_mask_sizes` answers, for any number of tokens held.
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
