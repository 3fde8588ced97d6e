"""Every withdrawal layer in one forward pass: how far withdrawal at each moves the next token's distribution.

The full sequence runs once. Before decoder layer K its kept tokens branch off as a *stream*, the one whose visual
tokens are withdrawn at K, and all streams that have branched off run through each further layer as one batch. Text
before the first visual token can't see the picture where attention is causal: it is the same in every stream, which
takes its keys and values from the full sequence. So no layer runs twice on the same thing, where the authors'
code (lzhxmu/VTW) reruns the model for each K.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import kl_div
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, KVSharingDict

from vtw_demo.errors import UserError
from vtw_demo.withdrawal.architectures import (
    check_family,
    check_flash_window,
    find_decoder,
    key_sources,
    rescale_query,
    scales_attention_by_position,
)
from vtw_demo.withdrawal.kept_tokens import (
    KeptPositions,
    LayerArguments,
    add_slots,
    keep_positions,
    sequence_dim,
    take_hidden_states,
)
from vtw_demo.withdrawal.segments import visual_token_mask
from vtw_demo.withdrawal.teacher_forcing import check_prompt_end, with_answer
from vtw_demo.withdrawal.withdraw import exclusive, logits_of

_HEAD_POSITIONS_AT_ONCE = 128
"""Bounds the memory for logits of long answers: positions that the head runs on at the same time."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """What withdrawal at each layer does to the next token, for a batch of prompts.

    - `layers`: the withdrawal layers K, 1 to L - 1.
    - `kl`, float32, shape (batch, K): `KL(P_withdrawn || P_full)` of the next token after the prompt, natural
      logarithm (arXiv 2405.05803, section 4.3; as in the authors' code).
    - `logits`, float32, shape (batch, K, vocabulary), and `full_logits`, float32, shape (batch, vocabulary): of that
      token, withdrawn at each K, and by the full model.
    - `answer_kl`, float32, shape (batch, K, answer): the same divergence at every token of the answer, all tokens
      before it given. The first column is `kl`. None where no answer was given.
    - `answer_choices`, int64, shape (batch, K, answer): the likeliest token there, withdrawn at each K; None as above.

    Raises ValueError for shapes that don't fit each other, and divergences that are negative or no numbers.
    """

    layers: tuple[int, ...]
    kl: torch.Tensor
    logits: torch.Tensor
    full_logits: torch.Tensor
    answer_kl: torch.Tensor | None = None
    answer_choices: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.layers != tuple(range(1, len(self.layers) + 1)):
            raise ValueError(f"layers must count from 1; these are {self.layers}.")
        batch, vocabulary = self.full_logits.shape
        wanted = {"kl": (batch, len(self.layers)), "logits": (batch, len(self.layers), vocabulary)}
        if self.answer_kl is not None:
            wanted["answer_kl"] = (batch, len(self.layers), self.answer_kl.shape[-1])
            wanted["answer_choices"] = wanted["answer_kl"]
        for name, shape in wanted.items():
            tensor = getattr(self, name)
            if tensor is None or tuple(tensor.shape) != shape:
                found = None if tensor is None else tuple(tensor.shape)
                raise ValueError(f"{name} must have the shape {shape}; it has {found}.")
        for name in ("kl", "answer_kl"):
            divergence = getattr(self, name)
            if divergence is not None and not (divergence >= 0).all():
                raise ValueError(f"{name} must be at least 0 and a number everywhere.")


def sweep(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    answer_token_ids: Sequence[int] | torch.Tensor | None = None,
    positions_at_once: int | None = None,
) -> Sweep:
    """The divergence of the next token for every withdrawal layer, from a single forward pass.

    - `model`: a vision-language model that `withdraw` supports; it is left as it was.
    - `inputs`: what its processor made of the prompts: `input_ids`, int64, shape (batch, prompt), and what goes
      with them, on the model's device. May be padded on the left.
    - `answer_token_ids`: answers, shape (batch, answer) or, for a batch of one, (answer,): with them, the divergence
      at each of their tokens too, teacher-forced.
    - `positions_at_once`: streams run through a layer in chunks of so many positions, at least a stream each; None
      takes as many as the full sequence has, so that no layer needs more memory than in a prefill. The result
      is the same.

    A batch without visual tokens is the same at every K. Nothing but the pass's own hidden states is kept, and no
    KV cache.

    Raises
    - ValueError for prompts that are padded on the right or end with a visual token, for answers that don't fit,
      and for `positions_at_once` below 1,
    - RuntimeError while a withdrawal is active on this model,
    - what `withdraw` raises.
    """
    check_family(model)
    if positions_at_once is not None and positions_at_once < 1:
        raise UserError(f"positions_at_once must be at least 1; this is {positions_at_once}.")
    answer_length = 0 if answer_token_ids is None else torch.as_tensor(answer_token_ids).shape[-1]
    # The answer's last token predicts nothing that is asked for.
    given = None if answer_token_ids is None else torch.as_tensor(answer_token_ids)[..., : max(0, answer_length - 1)]
    whole = with_answer(model, inputs, given)
    check_prompt_end(model, inputs)
    streams = _Streams(model, whole, max(1, answer_length), positions_at_once)
    with torch.no_grad(), exclusive(model), ExitStack() as hooks:
        streams.register(hooks)
        # No decoding follows: a cache and further logits would only take memory.
        model(**whole, **streams.cache_argument(), use_cache=False, logits_to_keep=1)
        hooks.close()
        return streams.read(None if answer_token_ids is None else answer_length)


def choose_layer(
    layers: Sequence[int], kl: torch.Tensor | Sequence[Sequence[float]], threshold: float = 0.003
) -> int | None:
    """The first of `layers` whose mean divergence over the samples is at most `threshold`; None if there is none.

    `kl`, shape (samples, layers) or (layers,), as `Sweep` has it. The authors' thresholds are 0.003 for LLaVA-1.5-7B,
    0.0005 for LLaVA-1.5-13B and 0.0001 for LLaVA-NeXT-Vicuna-7B (arXiv 2405.05803; their code scans layers
    from 5 on, which is for the caller to choose).

    Raises ValueError for shapes that don't fit and for a threshold that isn't a number from 0 on.
    """
    divergence = torch.as_tensor(kl, dtype=torch.float32)
    samples = divergence[None] if divergence.ndim == 1 else divergence
    if samples.ndim != 2 or samples.shape[1] != len(layers) or samples.numel() == 0:
        raise UserError(f"kl has the shape {tuple(divergence.shape)}, for {len(layers)} layers.")
    if not (math.isfinite(threshold) and threshold >= 0):
        raise UserError(f"The threshold must be a number from 0 on; this is {threshold!r}.")
    # Compared in float32: 0.003 of a tensor is a little more than 0.003.
    met = (samples.mean(0) <= torch.tensor(threshold)).tolist()
    return next((layer for layer, is_met in zip(layers, met, strict=True) if is_met), None)


class _PrefixCache(DynamicCache):
    """Takes a layer's keys and values of the first `length` positions from one forward pass, and puts them before those
    of another. It holds no layer of its own, so that models count positions and size masks as without a cache.

    - `states`, each of shape (batch, heads, length, dim): what was taken last.
    - `times`: how many times each of its rows serves, in passes that get it; 0 where it is taken.
    """

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
        keys, values = (_tile(states, self.times) for states in self.states)
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


class _Streams:
    """The streams of one sweep, and the hooks that run them beside the full sequence.

    Streams are stacked in the batch dimension, K = 1 first, `batch` rows each.
    """

    def __init__(
        self, model: PreTrainedModel, inputs: dict[str, Any], read_positions: int, positions_at_once: int | None
    ) -> None:
        self.model = model
        decoder = find_decoder(model)
        self.layers = decoder.layers
        self.layer_parameters = [tuple(inspect.signature(layer.forward).parameters) for layer in self.layers]
        self.key_sources = key_sources(decoder.config, len(self.layers))
        self.is_flash = "flash" in decoder.config._attn_implementation
        input_ids, attention_mask = inputs["input_ids"], inputs.get("attention_mask")
        self.batch, self.length = input_ids.shape
        self.read_positions = read_positions
        self.positions_at_once = positions_at_once or self.batch * self.length
        self.text_token = int(input_ids[0, -1])
        visual = visual_token_mask(model.config, input_ids)
        self.kept: KeptPositions | None = keep_positions(visual, attention_mask)
        """The positions that streams run on."""
        shares_keys = self.key_sources != list(range(len(self.layers)))
        is_padded = attention_mask is not None and not attention_mask.all()
        is_ragged = self.kept is not None and self.kept.valid is not None
        # Positions before the first visual token, which may be the same in all streams.
        prefix = 0 if is_padded or is_ragged or shares_keys else int(visual.any(0).byte().argmax())
        self.prefix = _PrefixCache(prefix) if prefix else None
        self.arguments: LayerArguments | None = None
        self.hidden: torch.Tensor | None = None
        """Shape (..., streams x batch, kept, hidden): what enters the next layer."""
        self.shared: dict[str, tuple[torch.Tensor, ...]] = {}
        """The streams' keys and values that later layers use too, each (streams x batch, ...), by type of layer."""
        self.full: torch.Tensor | None = None
        self.runs_streams = False

    def cache_argument(self) -> dict[str, Any]:
        """What the full sequence's forward pass gets for a cache."""
        return {} if self.prefix is None else {"past_key_values": self.prefix}

    def register(self, hooks: ExitStack) -> None:
        handle = find_decoder(self.model).register_forward_pre_hook(_keep_all_positions, with_kwargs=True)
        hooks.callback(handle.remove)
        for index, layer in enumerate(self.layers):
            handle = layer.register_forward_hook(self._after(index), with_kwargs=True)
            hooks.callback(handle.remove)
            if self.kept is not None and scales_attention_by_position(layer):
                projection = layer.self_attn.q_proj
                hooks.callback(projection.register_forward_hook(self._rescale(layer.self_attn)).remove)

    def _after(self, index: int) -> Any:
        def hook(layer: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            if self.runs_streams:
                return
            if self.kept is not None:
                kwargs = dict(zip(self.layer_parameters[index][1:], args[1:], strict=False)) | kwargs
                if index == 0:
                    self._begin(layer, kwargs)
                else:
                    self._run(index, layer, args[0], kwargs)
            if index == len(self.layers) - 1:
                self.full = _hidden_states(output)[..., -self.read_positions :, :]

        return hook

    def _begin(self, layer: nn.Module, kwargs: dict[str, Any]) -> None:
        """After the first layer, which tells whether text before the picture is the same in all streams."""
        assert self.kept is not None
        slots = add_slots(None, self.kept, 0, self.length)
        if self.prefix is not None:
            if self.prefix.states and _is_blind(layer, kwargs.get("attention_mask"), self.prefix.length):
                self.kept = KeptPositions(self.kept.index[:, self.prefix.length :], None, self.kept.tail)
            else:
                self.prefix = None
        self.arguments = LayerArguments(self.kept, slots, self.length, 0, self.is_flash)

    def _rescale(self, attention: nn.Module) -> Any:
        def hook(projection: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
            if not self.runs_streams:
                return None
            assert self.kept is not None
            times = output.shape[0] // self.batch
            return rescale_query(attention, output, 0, self.kept.index.repeat(times, 1))

        return hook

    def _run(self, index: int, layer: nn.Module, entering: torch.Tensor, kwargs: dict[str, Any]) -> None:
        """Branch off the stream whose withdrawal layer is `index`, and run all streams through that layer."""
        assert self.kept is not None
        branch = take_hidden_states(entering, self.kept)
        hidden = branch if self.hidden is None else torch.cat([self.hidden.to(branch.device), branch], dim=-3)
        if self.is_flash:
            check_flash_window(layer, self.length)
        shares_keys, source = "shared_kv_states" in kwargs, self.key_sources[index]
        parts, stored = [], []
        self.runs_streams = True
        try:
            for first, last, sees_all_columns in self._chunks(index):
                rows = slice(first * self.batch, last * self.batch)
                given = self._arguments(layer, kwargs, last - first, sees_all_columns)
                if shares_keys:
                    held = KVSharingDict()
                    if sees_all_columns:
                        states = kwargs["shared_kv_states"]
                        held.update({kind: tuple(_tile(s, last - first) for s in states[kind]) for kind in states})
                    elif source < index:
                        held.update({kind: tuple(s[rows] for s in states) for kind, states in self.shared.items()})
                    given["shared_kv_states"] = held
                    stored.append(held)
                if self.prefix is not None:
                    self.prefix.times = last - first
                parts.append(_hidden_states(layer(hidden[..., rows, :, :], **given)))
        finally:
            self.runs_streams = False
            if self.prefix is not None:
                self.prefix.times = 0
        self.hidden = torch.cat(parts, dim=-3)
        if shares_keys and source == index:
            for kind in stored[0]:
                chunks = zip(*(held[kind] for held in stored), strict=True)
                self.shared[kind] = tuple(torch.cat(chunk) for chunk in chunks)

    def _chunks(self, index: int) -> Iterator[tuple[int, int, bool]]:
        """Streams to run at once through layer `index`, first and last + 1, and whether they see all columns.

        They do where the layer's keys are of one before their withdrawal layer.
        """
        assert self.kept is not None
        source, at_once = self.key_sources[index], max(1, self.positions_at_once // self.kept.index.numel())
        for begin, end, sees_all_columns in ((0, source, False), (source, index, True)):
            for first in range(begin, end, at_once):
                yield first, min(first + at_once, end), sees_all_columns

    def _arguments(
        self, layer: nn.Module, kwargs: dict[str, Any], streams: int, sees_all_columns: bool
    ) -> dict[str, Any]:
        """What a layer gets for so many streams in place of what it was handed for the full sequence."""
        assert self.kept is not None
        assert self.arguments is not None
        given = {name: self._tiled(layer, name, value, streams) for name, value in kwargs.items()}
        if self.is_flash:
            given["position_ids"] = None  # it takes a gap in the positions for the start of another sequence
        mask = self.arguments.mask(
            layer, kwargs.get("attention_mask"), self.kept.index.shape[1], sees_all_columns=sees_all_columns
        )
        given["attention_mask"] = None if mask is None else _tile(mask, streams)
        return given

    def _tiled(self, layer: nn.Module, name: str, value: Any, streams: int) -> Any:
        if name == "attention_mask" or not isinstance(value, torch.Tensor | tuple):
            return value
        assert self.arguments is not None
        taken = self.arguments.take(layer, name, value)
        if isinstance(value, tuple):
            pairs = zip(value, taken, strict=True)
            return tuple(self._tiled_part(layer, name, part, of_kept, streams) for part, of_kept in pairs)
        return self._tiled_part(layer, name, value, taken, streams)

    def _tiled_part(self, layer: nn.Module, name: str, part: Any, of_kept: Any, streams: int) -> Any:
        dim = sequence_dim(name, part, self.batch, self.length, layer)
        return of_kept if dim is None else _tile(of_kept, streams, dim % of_kept.ndim - 1)

    def read(self, answer_length: int | None) -> Sweep:
        """What the streams came to, after the forward pass, for an answer of so many tokens; None for none."""
        assert self.full is not None
        layer_count, batch, positions = len(self.layers), self.batch, self.read_positions
        # (batch, positions, vocabulary)
        full_logits = self._logits(self.full).view(batch, positions, -1).float()
        full_log = full_logits.log_softmax(-1)
        next_logits, divergences, choices = [], [], []
        at_once = max(1, _HEAD_POSITIONS_AT_ONCE // (batch * positions))
        for first in range(0, layer_count - 1, at_once):
            last = min(first + at_once, layer_count - 1)
            if self.hidden is None:
                logits = full_logits.expand(last - first, -1, -1, -1)
            else:
                rows = self.hidden[..., first * batch : last * batch, -positions:, :]
                logits = self._logits(rows).view(last - first, batch, positions, -1).float()
            withdrawn_log = logits.log_softmax(-1)
            divergence = kl_div(full_log.expand_as(withdrawn_log), withdrawn_log, reduction="none", log_target=True)
            divergences.append(divergence.sum(-1).clamp_min(0))  # rounding may go below
            choices.append(logits.argmax(-1))
            next_logits.append(logits[:, :, 0])
        if not divergences:
            raise UserError(f"{type(self.model).__name__} has {layer_count} decoder layer: there is no K to sweep.")
        # (streams, batch, positions) -> (batch, streams, positions)
        answer_kl, answer_choices = (torch.cat(parts).transpose(0, 1) for parts in (divergences, choices))
        return Sweep(
            layers=tuple(range(1, layer_count)),
            kl=answer_kl[..., 0],
            logits=torch.cat(next_logits).transpose(0, 1),
            full_logits=full_logits[:, 0],
            answer_kl=None if answer_length is None else answer_kl[..., :answer_length],
            answer_choices=None if answer_length is None else answer_choices[..., :answer_length],
        )

    def _logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The logits of hidden states of shape (..., rows, positions, hidden), (rows x positions, vocabulary)."""
        return logits_of(self.model, hidden_states.flatten(-3, -2), self.text_token)


def _keep_all_positions(decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    # gemma4 would cut the sequence to its tail before its last layers, which streams still branch off from.
    return (args, {**kwargs, "logits_to_keep": 0}) if "logits_to_keep" in kwargs else None


def _is_blind(layer: nn.Module, mask: Any, length: int) -> bool:
    """Whether a layer's first `length` positions attend to none after them: not so in paligemma, for one."""
    if not isinstance(mask, torch.Tensor) or mask.ndim == 2:
        return getattr(layer.self_attn, "is_causal", True)
    beyond = mask[..., :length, length:]
    return not beyond.any() if mask.dtype == torch.bool else bool((beyond < -1e4).all())


def _hidden_states(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def _tile(tensor: torch.Tensor, times: int, dim: int = 0) -> torch.Tensor:
    """The tensor, so many times one after the other along `dim`."""
    repeats = [1] * tensor.ndim
    repeats[dim] = times
    return tensor.repeat(repeats)
