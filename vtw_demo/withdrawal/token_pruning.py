"""The hooks by which tokens leave a decoder's sequence between two of its layers.

This module is the only one of the project that changes a forward pass. Subclasses of `TokenPruning` say which tokens
leave, and when that is known.
"""

import inspect
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedModel

from vtw_demo.errors import UserError
from vtw_demo.withdrawal.architectures import (
    adds_features_after,
    find_attention,
    find_decoder,
    key_sources,
    rescale_query,
    scales_attention_by_position,
    traced,
    without_late_features,
)
from vtw_demo.withdrawal.cache import (
    count_positions,
    expect_update,
    find_cache,
    find_cache_layer,
    note_positions,
    noted_positions,
)
from vtw_demo.withdrawal.compilation import uncompiled
from vtw_demo.withdrawal.kept_tokens import add_kept, gather_hidden_states, keep_tokens, scatter_hidden_states
from vtw_demo.withdrawal.layer_inputs import LayerInputs, hidden_states_of, named_arguments, parameter_names, tile
from vtw_demo.withdrawal.segments import visual_token_mask

Changed = tuple[tuple, dict[str, Any]] | None
"""What a hook hands on in place of a module's arguments; None changes nothing."""


@dataclass
class ForwardPass:
    """What the hooks remember of one forward pass of the model."""

    stages: dict[int, LayerInputs]
    """What layers get, by the first of them: from each layer before which tokens leave up to the next such one."""
    past_length: int
    """How many sequence positions the KV cache accounted for before."""
    padding_mask: torch.Tensor | None
    restore_each_layer: bool
    """Whether the hidden states of all layers are asked for."""
    logits_to_keep: int
    """How many positions at the end are asked for, 0 for all."""
    untouched: int
    """How many positions at the end no stage takes a token from."""
    pictureless_from: int
    """The layer before which the last visual tokens leave."""
    prunes: bool = False
    """Whether this pass is of a prompt that tokens leave."""
    visual: torch.Tensor | None = None
    """Where the prompt's visual tokens are, bool, shape (batch, sequence)."""
    left: torch.Tensor | None = None
    """Which tokens have left, of the same shape."""
    is_pruned: bool = False
    """True once a layer has run with its hooks."""
    full: torch.Tensor | None = None
    """The hidden states that enter the stage."""
    is_tail: bool = False
    """True once the model itself has cut the sequence to its tail."""

    @property
    def tail(self) -> int:
        """How many positions of the final hidden states are read; 0 for all."""
        fits = self.logits_to_keep <= self.untouched
        return self.logits_to_keep if fits and not self.restore_each_layer else 0


class TokenPruning:
    """A context in which tokens leave forward passes of `model` before each of the decoder layers `at`, in ascending
    order: passes of all threads, or with `this_thread_only` of the one that makes the context.

    The kept tokens keep their positions. What a caller sees keeps its shape: a token that has left stays as it was.
    Hooks are removed on leaving, by an exception too, once no other thread's pass is under way. A model has one such
    context at a time. Inside, nothing runs compiled.
    """

    name = "withdraw"

    def __init__(self, model: PreTrainedModel, at: Sequence[int], this_thread_only: bool = False) -> None:
        self.model = model
        self.at = tuple(at)
        self.only_thread = threading.get_ident() if this_thread_only else None
        self.decoder = find_decoder(model)
        self.layers = [traced(layer) for layer in self.decoder.layers]
        self.is_flash = "flash" in self.decoder.config._attn_implementation
        self.key_sources = key_sources(self.decoder.config, len(self.layers))
        self.pictureless_from = len(self.layers)
        """The layer before which the last visual tokens leave."""
        self.hooks = ExitStack()
        self.passes: dict[int, ForwardPass] = {}
        """The forward pass that is under way in each thread."""
        self.is_over = False
        self.lock = threading.Lock()

    @property
    def forward(self) -> ForwardPass | None:
        """That of this thread."""
        return self.passes.get(threading.get_ident())

    def begin_prefill(self, forward: ForwardPass, visual: torch.Tensor, given: dict[str, Any]) -> None:
        """Called before a prefill: says whether it `prunes`, and calls `prune` for each layer of `at`, or notes what it
        takes to call it later, before that layer.

        `visual`, bool, shape (batch, sequence): where the visual tokens are. `given`: the model's arguments by name.
        """
        raise NotImplementedError

    def prune(self, forward: ForwardPass, layer: int, left: torch.Tensor) -> None:
        """Let the layers from `layer` on, one of `at`, run without `left`, bool, shape (batch, sequence): tokens that
        leave there, and all that have left before. Padding leaves with them."""
        inputs = forward.stages[layer]
        inputs.kept = keep_tokens(left, forward.padding_mask)
        if inputs.kept is not None:
            after = inputs.past_length + inputs.sequence_length
            inputs.positions = add_kept(inputs.positions, inputs.kept, inputs.past_length, after)
            forward.untouched = min(forward.untouched, inputs.kept.tail)

    def layers_of_pass(self, noted: tuple[int, ...]) -> tuple[int, ...]:
        """Before which layers tokens leave in a forward pass, as far as is known when it begins. `noted`: before which
        they left when its KV cache was filled, if they did."""
        if noted and noted != self.at:
            raise other_cache(noted, ", ".join(map(str, self.at)))
        return self.at

    def stage_of(self, forward: ForwardPass, index: int) -> int:
        """The layer by which tokens have left last when layer `index` runs; -1 where none has."""
        return max((layer for layer in forward.stages if layer <= index), default=-1)

    def __enter__(self) -> Self:
        with ExitStack() as self.hooks:
            self.hooks.enter_context(exclusive(self.model))
            self.hooks.enter_context(uncompiled())
            if self.at:
                self.register()
            self.hooks = self.hooks.pop_all()
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            with self.lock:
                self.is_over = True
            self.passes.pop(threading.get_ident(), None)
            # A pass that lost its hooks halfway would go on with the wrong tokens.
            while self.passes.keys() & {thread.ident for thread in threading.enumerate()}:
                time.sleep(0.001)
        finally:
            self.hooks.close()

    def register(self) -> None:
        self.hook_before(self.decoder, self.before_decoder)
        for index in range(self.at[0], len(self.layers)):
            module: Any = self.layers[index]
            self.hook_before(module, partial(self.before_layer, index))
            # First of all hooks, so that those that record hidden states record restored ones.
            self.hook_after(module, partial(self.after_layer, index), prepend=True)
            if scales_attention_by_position(module):
                self.hook_after(find_attention(module).q_proj, partial(self.after_query_projection, index))
        # Last of all: a pass of another thread that finds these hooks finds the others, too.
        self.hook_after(self.model, self.end, always_call=True)
        self.hook_before(self.model, self.begin)

    def hook_before(self, module: nn.Module, hook: Any) -> None:
        self.hooks.callback(module.register_forward_pre_hook(self.in_own_thread(hook), with_kwargs=True).remove)

    def hook_after(self, module: nn.Module, hook: Any, **options: bool) -> None:
        handle = module.register_forward_hook(self.in_own_thread(hook), with_kwargs=True, **options)
        self.hooks.callback(handle.remove)

    def in_own_thread(self, hook: Any) -> Any:
        return lambda *args: hook(*args) if self.only_thread in (None, threading.get_ident()) else None

    def begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Changed:
        given = named_arguments(module, args, kwargs)
        input_ids, cache = given.get("input_ids"), find_cache(given)
        if input_ids is None:
            raise UserError(
                f"{self.name} finds the visual tokens by their token ids, and this forward pass has no "
                "input_ids. Hand input_ids instead of inputs_embeds."
            )
        if self.model.training and self.model.is_gradient_checkpointing:
            raise RuntimeError(
                f"{self.name} doesn't work with gradient checkpointing, which runs layers again after the "
                "forward pass. Call model.gradient_checkpointing_disable() first."
            )
        length, past_length = input_ids.shape[1], count_positions(cache, input_ids.shape[1])
        at, noted = noted_positions(cache) if cache is not None and past_length else ((), {})
        layers = self.layers_of_pass(at)
        stages = {layer: LayerInputs(length, past_length, self.is_flash) for layer in layers}
        for layer, positions in noted.items():
            stages[layer].positions = positions
        output_hidden_states = given.get("output_hidden_states")
        if output_hidden_states is None:
            output_hidden_states = self.decoder.config.output_hidden_states
        asked = given.get("logits_to_keep") if "logits_to_keep" in parameter_names(type(module).forward) else 0
        forward = ForwardPass(
            stages,
            past_length,
            padding_mask=own_padding_mask(given, length),
            restore_each_layer=bool(output_hidden_states),
            logits_to_keep=asked if isinstance(asked, int) else 0,
            untouched=length,
            pictureless_from=self.pictureless_from,
        )
        # A placeholder that the model itself has written into its answer is no visual token.
        if past_length == 0 or has_visual_input(given):
            self.begin_prefill(forward, visual_token_mask(self.model.config, input_ids), given)
        with self.lock:
            if not self.is_over:
                self.passes[threading.get_ident()] = forward
        return None

    def end(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        forward = self.passes.pop(threading.get_ident(), None)
        if output is not None and forward is not None and forward.prunes and not forward.is_pruned:
            raise RuntimeError(
                f"No token left in this forward pass of {type(module).__name__}: its decoder layers ran without their "
                f"hooks, as in code that torch.compile or a CUDA graph has captured. Hand {self.name} the model as it "
                "was loaded, and compile it later or not at all."
            )

    def before_decoder(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Changed:
        forward = self.forward
        if forward is None or not forward.prunes:
            return None
        kwargs = without_late_features(kwargs, forward.pictureless_from)
        if adds_features_after(kwargs, min(forward.stages, default=len(self.layers))):
            forward.restore_each_layer = True  # the decoder adds them to a sequence of all tokens
        if not forward.tail and "logits_to_keep" in kwargs:
            kwargs["logits_to_keep"] = 0  # gemma4 would cut kept tokens to a tail that isn't the prompt's
        return args, kwargs

    def before_layer(self, index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Changed:
        forward = self.forward
        if forward is None:
            if self.is_in_plain_pass():
                return None
            raise RuntimeError(
                f"A decoder layer of {type(self.model).__name__} ran outside of the model's own forward "
                f"pass, where {self.name} can't know the visual tokens. Call the model that was handed to it."
            )
        forward.is_pruned = True
        first, inputs = self.stage_of(forward, index), self.pruned_stage(forward, index)
        if inputs is None:
            return None
        given = named_arguments(module, args, kwargs)
        hidden_states = given.pop("hidden_states")
        expect_update(find_cache_layer(given, index))
        if inputs.kept is not None:
            if index == first:
                self.check_entering(forward, index, hidden_states)
                forward.full = hidden_states
            is_whole = index == first or forward.restore_each_layer
            expected = inputs.sequence_length if is_whole else inputs.kept.count
            forward.is_tail = forward.is_tail or hidden_states.shape[-2] != expected
            if is_whole and not forward.is_tail:
                hidden_states = gather_hidden_states(hidden_states, inputs.kept)
        source = self.key_source(index, given)
        replaced = inputs.replace(
            module,
            given,
            query_count=hidden_states.shape[-2],
            keys_of=self.pruned_stage(forward, source),
            cache_layer=find_cache_layer(given, source),
        )
        return (hidden_states,), replaced

    def pruned_stage(self, forward: ForwardPass, index: int) -> LayerInputs | None:
        """What layer `index` gets; None where no token has left before it."""
        inputs = forward.stages.get(self.stage_of(forward, index))
        return None if inputs is None or inputs.positions is None else inputs

    def check_entering(self, forward: ForwardPass, index: int, hidden_states: torch.Tensor) -> None:
        """Raise RuntimeError unless all of the prompt's tokens enter a layer, or the model has cut it to its tail."""
        count, expected = hidden_states.shape[-2], forward.stages[index].sequence_length
        if count not in (expected, forward.tail):
            raise RuntimeError(
                f"{count} tokens entered decoder layer {index} of this {type(self.model).__name__}, for a prompt "
                f"of {expected}. Which of them are visual isn't known, so {self.name} can't be used with it."
            )

    def is_in_plain_pass(self) -> bool:
        """Whether this thread is in a forward pass of the model that began before the context, or after it."""
        code, frame = inspect.unwrap(type(self.model).forward).__code__, sys._getframe()
        while frame is not None and not (frame.f_code is code and frame.f_locals.get("self") is self.model):
            frame = frame.f_back  # type: ignore[assignment]
        return frame is not None

    def key_source(self, index: int, given: dict[str, Any]) -> int:
        """The layer whose keys and values layer `index`, called with `given`, attends to."""
        # In transformers 5.0 layers share them through the cache alone.
        shares = "shared_kv_states" in given or find_cache(given) is not None
        return self.key_sources[index] if shares else index

    def after_layer(self, index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        forward = self.forward
        if forward is None:
            return None
        given = named_arguments(module, args, kwargs)
        expect_update(find_cache_layer(given, index), is_expected=False)
        inputs = self.pruned_stage(forward, index)
        if inputs is None or inputs.kept is None:
            return None
        assert inputs.positions is not None
        note_positions(find_cache(given), index, inputs.positions, tuple(forward.stages))
        is_last = index == len(self.layers) - 1
        if forward.is_tail or not (forward.restore_each_layer or is_last or index + 1 in forward.stages):
            return None
        hidden_states = hidden_states_of(output)
        if is_last and forward.tail:
            hidden_states = hidden_states[..., -forward.tail :, :]
        else:
            assert forward.full is not None
            hidden_states = scatter_hidden_states(forward.full, hidden_states, inputs.kept)
        return (hidden_states, *output[1:]) if isinstance(output, tuple) else hidden_states

    def after_query_projection(
        self, index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: torch.Tensor
    ) -> torch.Tensor | None:
        forward = self.forward
        inputs = None if forward is None else self.pruned_stage(forward, index)
        if forward is None or inputs is None or inputs.kept is None or forward.is_tail:
            return None
        kept = tile(inputs.kept.index.to(output.device), len(output) // len(inputs.kept.index))
        return rescale_query(find_attention(self.layers[index]), output, inputs.past_length, kept)


def other_cache(noted: tuple[int, ...], now: str) -> RuntimeError:
    return RuntimeError(
        f"This KV cache was filled with withdrawal layer {', '.join(map(str, noted))}, and is used now with {now}. "
        "Start with a new cache."
    )


@contextmanager
def exclusive(model: PreTrainedModel) -> Iterator[None]:
    """Keep other prunings off `model` inside a `with` block. Raises RuntimeError if one is active already."""
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


def has_visual_input(given: dict[str, Any]) -> bool:
    """Whether a forward pass is handed pictures or videos, or what the vision encoder made of them."""
    encoded = given.get("mm_encoder_outputs") or {}
    return any(encoded.get(name) is not None for name in ("image", "video")) or any(
        value is not None for name, value in given.items() if is_visual_input(name)
    )


def is_visual_input(name: str) -> bool:
    """Whether a model's input of this name holds pixels."""
    return "pixel_values" in name or name.startswith("image_patches")


def own_padding_mask(given: dict[str, Any], sequence_length: int) -> torch.Tensor | None:
    """The part of a two-dimensional attention mask that is about the tokens of this forward pass."""
    mask = given.get("attention_mask")
    if isinstance(mask, dict):  # with a static cache, by type of layer; that of recurrent layers is of padding alone
        mask = next((part for part in mask.values() if isinstance(part, torch.Tensor) and part.ndim == 2), None)
    return mask[:, -sequence_length:] if isinstance(mask, torch.Tensor) and mask.ndim == 2 else None
