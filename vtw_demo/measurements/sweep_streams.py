"""The full sequence and, beside it, one *stream* for each withdrawal layer K, in one forward pass.

Before decoder layer K the kept tokens branch off as the stream whose visual tokens are withdrawn at K, and all streams
that have branched off run through each further layer as one batch. Text before the first visual token can't see the
picture where attention is causal: it is the same in every stream, which takes its keys and values from the full
sequence. So no layer runs twice on the same thing, where the authors' code (lzhxmu/VTW) reruns the model for each K.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from vtw_demo.measurements.head import Rest, rest_of
from vtw_demo.withdrawal.architectures import ATTENTION_TYPES, layer_types, shares_keys
from vtw_demo.withdrawal.cache import cache_parameter
from vtw_demo.withdrawal.kept_tokens import gather_hidden_states
from vtw_demo.withdrawal.layer_inputs import hidden_states_of, named_arguments, tile
from vtw_demo.withdrawal.steps import Pruning
from vtw_demo.withdrawal.token_pruning import Changed, ForwardPass
from vtw_demo.withdrawal.withdraw import Withdraw


class SweepStreams(Pruning):
    """Streams are stacked in the batch dimension, K = 1 first, as many rows each as the batch has. `hidden`, `full` and
    `rest` are there after a forward pass of prompts that don't end with a visual token."""

    def __init__(self, model: PreTrainedModel, read_positions: int, positions_at_once: int | None) -> None:
        super().__init__(model, [Withdraw(1)], this_thread_only=True)
        self.read_positions = read_positions
        self.positions_at_once = positions_at_once
        self.hidden: torch.Tensor | None = None  # of the streams, shape (..., streams x batch, kept, hidden)
        self.full: torch.Tensor | None = None  # of the full sequence, shape (..., batch, read_positions, hidden)
        self.rest: Rest = None  # of what layers hand on, for `logits_of`
        self.prefix: _PrefixCache | None = None
        # By type of layer, the streams' keys and values that later layers use too, each (streams x batch, ...).
        self.shared: dict[str, tuple[torch.Tensor, ...]] = {}
        self.runs_streams = False

    def begin_prefill(self, forward: ForwardPass, visual: torch.Tensor, given: dict[str, Any]) -> None:
        super().begin_prefill(forward, visual, given)
        is_padded = forward.padding_mask is not None and not forward.padding_mask.all()
        kept = forward.stages[1].kept
        is_ragged = kept is None or kept.valid is not None
        config = self.decoder.config
        shares = shares_keys(config, len(self.layers))
        # The state that the first text leaves, and what an indexer makes of it, isn't in keys and values.
        is_other = not set(layer_types(config, len(self.layers))) <= ATTENTION_TYPES
        is_unlike = is_padded or is_ragged or shares or is_other
        if not (is_unlike or cache_parameter(type(self.model).forward) is None):
            self.prefix = _PrefixCache(length=int(visual.any(0).byte().argmax()))

    def begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Changed:
        super().begin(module, args, kwargs)
        if self.prefix is None:
            return None
        name = cache_parameter(type(module).forward)
        assert name is not None
        return args, {**kwargs, name: self.prefix}

    def before_decoder(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Changed:
        # gemma4 would cut the sequence to its tail before its last layers, which streams still branch off from.
        return (args, {**kwargs, "logits_to_keep": 0}) if "logits_to_keep" in kwargs else None

    def before_layer(self, index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Changed:
        return None

    def after_layer(self, index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if self.runs_streams:
            return
        forward = self.forward
        assert forward is not None
        forward.is_pruned = True
        if forward.prunes:
            given = named_arguments(module, args, kwargs)
            entering = given.pop("hidden_states")
            if index == 1:
                self.leave_prefix(forward, module, given.get("attention_mask"))
            self.runs_streams = True
            try:
                self.run(forward, index, module, entering, given)
            finally:
                self.runs_streams = False
                if self.prefix is not None:
                    self.prefix.times = 0
        if index == len(self.layers) - 1:
            self.full = hidden_states_of(output)[..., -self.read_positions :, :]
            self.rest = rest_of(output)

    def after_query_projection(self, *args: Any) -> torch.Tensor | None:
        return super().after_query_projection(*args) if self.runs_streams else None

    def leave_prefix(self, forward: ForwardPass, layer: nn.Module, mask: Any) -> None:
        """Run streams without the text before the picture, where it is the same in all of them."""
        if self.prefix is None:
            return
        if self.prefix.states and _is_blind(layer, mask, self.prefix.length):
            inputs = forward.stages[1]
            assert inputs.kept is not None
            inputs.kept = replace(inputs.kept, index=inputs.kept.index[:, self.prefix.length :])
        else:
            self.prefix = None

    def run(
        self, forward: ForwardPass, index: int, layer: nn.Module, entering: torch.Tensor, given: dict[str, Any]
    ) -> None:
        """Branch off the stream whose withdrawal layer is `index`, and run all streams through that layer."""
        inputs = forward.stages[1]
        kept = inputs.kept
        assert kept is not None
        branch = gather_hidden_states(entering, kept)
        hidden = branch if self.hidden is None else torch.cat([self.hidden.to(branch.device), branch], dim=-3)
        batch, source, shared = len(kept.index), self.key_source(index, given), given.get("shared_kv_states")
        positions_at_once = self.positions_at_once or batch * inputs.sequence_length
        parts, stored = [], []
        for first, last, sees_all in _chunks(index, source, max(1, positions_at_once // kept.index.numel())):
            rows, times = slice(first * batch, last * batch), last - first
            replaced = inputs.replace(layer, given, kept.count, keys_of=None if sees_all else inputs, times=times)
            if shared is not None:
                held = type(shared)()
                if sees_all:
                    held.update({kind: tuple(tile(states, times) for states in shared[kind]) for kind in shared})
                elif source < index:
                    held.update({kind: tuple(states[rows] for states in self.shared[kind]) for kind in self.shared})
                replaced["shared_kv_states"] = held
                stored.append(held)
            if self.prefix is not None:
                self.prefix.times = times
            parts.append(hidden_states_of(layer(hidden[..., rows, :, :], **replaced)))
        self.hidden = torch.cat(parts, dim=-3)
        if shared is not None and source == index:
            for kind in stored[0]:
                chunks = zip(*(held[kind] for held in stored), strict=True)
                self.shared[kind] = tuple(torch.cat(chunk) for chunk in chunks)


class _PrefixCache(DynamicCache):
    """Takes a layer's keys and values of the first `length` positions, `states`, from one forward pass, and puts them
    before those of another, each row `times` times; 0 where it is taken. It holds no layer of its own, so that models
    count positions and size masks as without a cache."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length
        self.states: tuple[torch.Tensor, ...] = ()
        self.times = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.times:
            self.states = (key_states[..., : self.length, :], value_states[..., : self.length, :])
            return key_states, value_states
        keys, values = (tile(states, self.times) for states in self.states)
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


def _chunks(index: int, source: int, at_once: int) -> Iterator[tuple[int, int, bool]]:
    """Streams to run at once through layer `index`, first and last + 1, and whether they see the whole sequence: they
    do where the layer's keys are of one before their withdrawal layer."""
    for begin, end, sees_all in ((0, source, False), (source, index, True)):
        for first in range(begin, end, at_once):
            yield first, min(first + at_once, end), sees_all


def _is_blind(layer: Any, mask: Any, length: int) -> bool:
    """Whether a layer's first `length` positions attend to none after them: not so in paligemma, for one."""
    if not isinstance(mask, torch.Tensor) or mask.ndim == 2:
        return getattr(layer.self_attn, "is_causal", True)
    beyond = mask[..., :length, length:]
    return not beyond.any() if mask.dtype == torch.bool else bool((beyond < -1e4).all())
