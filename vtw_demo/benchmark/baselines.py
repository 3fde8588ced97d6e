"""What else a user could pick: the peers that `bench --compare` runs beside withdrawal, in the same process.

They belong to the benchmark, were written for it from the papers, and do no more than it takes.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

import torch
import transformers
from packaging.requirements import Requirement
from torch import nn
from transformers import Cache, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vtw_demo.errors import UserError
from vtw_demo.withdrawal.architectures import check_family, find_decoder, unlike_llava
from vtw_demo.withdrawal.attention_capture import captured_rows
from vtw_demo.withdrawal.kept_tokens import (
    KeptPositions,
    LayerArguments,
    add_slots,
    keep_positions,
    put_hidden_states,
    take_hidden_states,
)
from vtw_demo.withdrawal.segments import visual_token_mask
from vtw_demo.withdrawal.teacher_forcing import check_prompt, check_prompt_end
from vtw_demo.withdrawal.withdraw import count_columns, exclusive, has_visual_input, note_slots, noted_slots

FASTV_SHARE = 0.5
FASTV_LAYER = 2
"""Half of the visual tokens, after two layers: the setting that the FastV paper is named for."""

PRESS_SHARE = 0.5


@dataclass(frozen=True)
class Peer:
    """Something else to pick.

    - `note`: a sentence or two: what it does, or why it isn't available.
    - `context`: takes a model and gives a context in which its forward passes and `generate` work that way. It leaves
      the model as it was. None where it isn't available here.
    """

    name: str
    note: str
    context: Callable[[PreTrainedModel], AbstractContextManager[None]] | None


def peers(model: PreTrainedModel) -> tuple[Peer, ...]:
    """The peers, each with a context for `model` or the reason why there is none."""
    return (
        Peer(
            "full attention matrices",
            "Attention is eager, and each forward pass keeps the attention matrices of all layers, as attention demos "
            "do; attention mass is measured without them.",
            full_attention_matrices,
        ),
        _fastv_peer(model),
        _kvpress_peer(),
    )


@contextmanager
def full_attention_matrices(model: PreTrainedModel) -> Iterator[None]:
    """Let the forward passes of `model` keep their attention matrices, inside a `with` block.

    The decoder's attention is eager, and `output_attentions=True` is handed to each forward pass: its output has
    `attentions`, a tensor of shape (batch, heads, queries, keys) for each layer. `generate` drops them with each
    token's output.
    """

    def ask(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, {**kwargs, "output_attentions": True}

    config = find_decoder(model).config
    before = config._attn_implementation
    handle = model.register_forward_pre_hook(ask, with_kwargs=True)
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before
        handle.remove()


@contextmanager
def fastv(
    model: PreTrainedModel, share: float | Sequence[float] = FASTV_SHARE, layer: int = FASTV_LAYER
) -> Iterator[None]:
    """Prune visual tokens of `model` before decoder layer `layer` (K, counted from 0), inside a `with` block.

    In a prefill, each prompt's visual tokens are ranked by the attention, mean over heads, that its last token gives
    them in layer K - 1. The share of `share`, rounded down, that gets least is dropped before layer K; a sequence has
    one for each row of the batch. The others keep their positions, and the KV cache of layers from K on holds these
    alone. (Chen et al., "An Image is Worth 1/2 Tokens After Layer 2", ECCV 2024, arXiv 2403.06764, section 4.1:
    filtering ratio R, filtering layer K.)

    Final hidden states and logits keep their shape; those of a dropped token mean nothing.

    Raises ValueError for a share outside 0 to 1, a layer outside 1 to L - 1, and a model in which more depends on a
    token's place than its position, or whose attention is neither sdpa nor eager; RuntimeError if a withdrawal or
    FastV is active on the model already. Forward passes raise ValueError for a prompt that has no input_ids, ends
    with padding or a visual token, or brings a picture to a KV cache that holds tokens already.
    """
    check_fastv(model, share, layer)
    with exclusive(model):
        pruning = _FastV(model, share, layer)
        try:
            pruning.register()
            yield
        finally:
            pruning.remove()


def check_fastv(model: PreTrainedModel, share: float | Sequence[float], layer: int) -> None:
    """Raise the ValueError that `fastv` raises."""
    check_family(model)
    decoder, name = find_decoder(model), type(model).__name__
    layers = decoder.layers
    shares = share if isinstance(share, Sequence) else [share]
    if not all(0 <= part <= 1 for part in shares):
        raise UserError(f"The share of visual tokens to drop must be from 0 to 1; this is {share}.")
    if not 1 <= layer < len(layers):
        raise UserError(f"FastV's layer must be from 1 to {len(layers) - 1} in {name}; this is {layer}.")
    implementation = decoder.config._attn_implementation
    if implementation not in ("sdpa", "eager"):
        raise UserError(f"FastV is written here for sdpa or eager attention; that of {name} is {implementation}.")
    if (reason := unlike_llava(model)) is not None:
        raise UserError(f"FastV is written here for decoders like LLaVA's; that of {name} {reason}.")


class _FastV:
    """The hooks of one `fastv` context, and what a forward pass remembers between them."""

    def __init__(self, model: PreTrainedModel, share: float | Sequence[float], layer: int) -> None:
        self.model = model
        self.share = share
        self.layer = layer
        self.layers = find_decoder(model).layers
        self.parameters = tuple(inspect.signature(model.forward).parameters)
        self.handles: list[Any] = []
        self.ranking = ExitStack()
        self.forget()

    def forget(self, *_: Any) -> None:
        self.visual: torch.Tensor | None = None
        """Bool, shape (batch, sequence), in a prefill with visual tokens."""
        self.padding_mask: torch.Tensor | None = None
        self.kept: KeptPositions | None = None
        """None until the tokens are ranked, and where none is dropped."""
        self.arguments: LayerArguments | None = None
        """None where layers from K on see all that the others see."""
        self.full: torch.Tensor | None = None
        """The hidden states that enter layer K."""

    def register(self) -> None:
        ranked, model = self.layers[self.layer - 1], self.model
        add, forget = self.handles.append, self.forget
        add(model.register_forward_pre_hook(self.begin, with_kwargs=True))
        add(model.register_forward_hook(forget, always_call=True))
        add(ranked.register_forward_pre_hook(self.before_ranking))
        add(ranked.register_forward_hook(self.after_ranking, always_call=True))
        for index in range(self.layer, len(self.layers)):
            module: Any = self.layers[index]
            add(module.register_forward_pre_hook(partial(self.before_layer, index), with_kwargs=True))
            add(module.register_forward_hook(partial(self.after_layer, index), with_kwargs=True))

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.ranking.close()  # a KeyboardInterrupt passes by the layer's own hook
        self.forget()

    def begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given = dict(zip(self.parameters, args, strict=False)) | kwargs
        input_ids = given.get("input_ids")
        if input_ids is None:
            raise UserError("FastV finds visual tokens by their token ids, and this forward pass has no input_ids.")
        cache: Cache | None = given.get("past_key_values")
        columns_before = count_columns(cache, input_ids.shape[1])
        if columns_before == 0:
            visual = visual_token_mask(self.model.config, input_ids)
            if visual.any():
                check_prompt(given)
                check_prompt_end(self.model, given)
                self.visual, self.padding_mask = visual, given.get("attention_mask")
        elif has_visual_input(given):
            raise UserError(
                f"FastV ranks the visual tokens of a whole prompt, and this KV cache holds {columns_before} tokens "
                "already. Start with a new one."
            )
        elif cache is not None and (slots := noted_slots(cache)[1]) is not None:
            self.arguments = LayerArguments(None, slots, input_ids.shape[1], columns_before, is_flash=False)

    def before_ranking(self, *_: Any) -> None:
        if self.visual is not None:
            self.ranking.enter_context(captured_rows(self.model, 1, self.rank))

    def after_ranking(self, *_: Any) -> None:
        self.ranking.close()

    def rank(self, layer_index: int, weights: torch.Tensor) -> None:
        assert self.visual is not None
        length = self.visual.shape[1]  # a static cache has further keys
        scores = weights[:, 0, :length].masked_fill(~self.visual, torch.inf)
        share = torch.as_tensor(self.share, dtype=torch.double, device=scores.device)
        count = (self.visual.sum(1) * share).long()
        dropped = scores.argsort(1).argsort(1) < count[:, None]
        self.kept = keep_positions(dropped, self.padding_mask)
        if self.kept is not None:
            slots = add_slots(None, self.kept, 0, length)
            self.arguments = LayerArguments(self.kept, slots, length, 0, is_flash=False)

    def before_layer(
        self, index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        if self.arguments is None:
            return None
        (hidden_states,) = args
        if self.kept is not None:
            if index == self.layer:
                self.full, hidden_states = hidden_states, take_hidden_states(hidden_states, self.kept)
            kwargs = {
                name: value if name == "attention_mask" else self.arguments.take(module, name, value)
                for name, value in kwargs.items()
            }
        cache = kwargs.get("past_key_values")
        kwargs["attention_mask"] = self.arguments.mask(
            module,
            kwargs.get("attention_mask"),
            query_count=hidden_states.shape[-2],
            cache_layer=cache.layers[index] if cache is not None and index < len(cache.layers) else None,
        )
        return (hidden_states,), kwargs

    def after_layer(self, index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        if self.arguments is None or self.kept is None:
            return None
        if (cache := kwargs.get("past_key_values")) is not None:
            note_slots(cache.layers[index], self.arguments.slots)
        if index < len(self.layers) - 1:
            return None
        assert self.full is not None
        if isinstance(output, tuple):
            return (put_hidden_states(self.full, output[0], self.kept), *output[1:])
        return put_hidden_states(self.full, output, self.kept)


@contextmanager
def snapkv(model: PreTrainedModel) -> Iterator[None]:
    """Drop keys and values after the prefill with NVIDIA's kvpress, inside a `with` block.

    Its SnapKVPress drops the share of `PRESS_SHARE` in each layer (arXiv 2404.14469). Raises ImportError where kvpress
    isn't installed.
    """
    functions = dict(ALL_ATTENTION_FUNCTIONS)
    kvpress = importlib.import_module("kvpress")
    ALL_ATTENTION_FUNCTIONS.update(functions)  # the first import has wrapped them all, for presses other than this one
    layers = find_decoder(model).layers
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.self_attn._modules.pop, "rotary_emb", None)  # left behind by the press
            hook = layer.self_attn.register_forward_pre_hook(_with_cache_position, with_kwargs=True)
            stack.callback(hook.remove)
        with kvpress.SnapKVPress(compression_ratio=PRESS_SHARE)(model):
            yield


def _with_cache_position(
    attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """transformers hands layers no `cache_position` any more, by which kvpress 0.5.5 tells a prefill."""
    before = kwargs["past_key_values"].layers[attention.layer_idx].get_seq_length()
    tokens = (args[0] if args else kwargs["hidden_states"]).shape[1]
    return args, {"cache_position": torch.arange(before, before + tokens), **kwargs}


def _fastv_peer(model: PreTrainedModel) -> Peer:
    name = f"FastV, {FASTV_SHARE:.0%} of visual tokens before layer {FASTV_LAYER}"
    try:
        check_fastv(model, FASTV_SHARE, FASTV_LAYER)
    except UserError as error:
        return Peer(name, str(error), None)
    return Peer(name, "Drops those that the prompt's last token attends to least (arXiv 2403.06764).", fastv)


def _kvpress_peer() -> Peer:
    name = f"kvpress, SnapKV, {PRESS_SHARE:.0%} of keys and values"
    try:
        asked = [Requirement(line) for line in requires("kvpress") or ()]
    except PackageNotFoundError:
        return Peer(name, "kvpress isn't installed: `pip install --no-deps kvpress`.", None)
    note = "Prefills in full, then drops keys and values in all layers (arXiv 2404.14469)."
    for requirement in asked:
        if requirement.name == "transformers" and not requirement.specifier.contains(transformers.__version__):
            wanted = f"kvpress {version('kvpress')} asks for {requirement}"
            note += f" {wanted}, and this is {transformers.__version__}: the benchmark hands it `cache_position`."
    return Peer(name, note, snapkv)
