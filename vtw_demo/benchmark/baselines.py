"""What else a user could pick: the peers that `bench --compare` runs beside withdrawal, in the same process."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

import torch
import transformers
from packaging.requirements import Requirement
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vtw_demo.errors import UserError
from vtw_demo.measurements.equal_flops import RIVALS, Rival, equal_recipe, schedule_of
from vtw_demo.measurements.flops import Schedule
from vtw_demo.withdrawal.architectures import find_decoder
from vtw_demo.withdrawal.prune import prune, read_recipe

PRESS_SHARE = 0.5


@dataclass(frozen=True)
class Peer:
    """Something else to pick."""

    name: str
    note: str  # what it does, or why it isn't available
    context: Callable[[PreTrainedModel], AbstractContextManager[None]] | None  # in which a model works that way
    schedule: Schedule | None = None  # of the visual tokens that it keeps, where it takes some out of the sequence


def peers(model: PreTrainedModel, prompt_tokens: int, visual_tokens: int, layer: int) -> tuple[Peer, ...]:
    """For prompts of so many tokens; the rivals with as many FLOPs as withdrawal at `layer`."""
    note = (
        "Attention is eager, and each forward pass keeps the attention matrices of all layers, as attention demos do; "
        "attention mass is measured without them."
    )
    rivals = (_rival_peer(model, rival, prompt_tokens, visual_tokens, layer) for rival in RIVALS)
    return Peer("full attention matrices", note, full_attention_matrices), *rivals, _kvpress_peer()


@contextmanager
def full_attention_matrices(model: PreTrainedModel) -> Iterator[None]:
    """Attention is eager, and each forward pass has `attentions`, (batch, heads, queries, keys) for each layer."""
    config = find_decoder(model).config
    before = config._attn_implementation
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "output_attentions": True}), with_kwargs=True
    )
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before
        handle.remove()


@contextmanager
def snapkv(model: PreTrainedModel) -> Iterator[None]:
    """NVIDIA's kvpress drops keys and values after the prefill, `PRESS_SHARE` in each layer (arXiv 2404.14469)."""
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


def _with_cache_position(attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """transformers hands layers no `cache_position` any more, by which kvpress 0.5.5 tells a prefill."""
    before = kwargs["past_key_values"].layers[attention.layer_idx].get_seq_length()
    tokens = (args[0] if args else kwargs["hidden_states"]).shape[1]
    return args, {"cache_position": torch.arange(before, before + tokens), **kwargs}


def _rival_peer(model: PreTrainedModel, rival: Rival, prompt_tokens: int, visual_tokens: int, layer: int) -> Peer:
    name = f"{rival}, FLOPs as withdrawn at {layer}"
    try:
        recipe = equal_recipe(rival, model.config, prompt_tokens, visual_tokens, layer)
        for step in read_recipe(recipe):
            step.check(model)
    except UserError as error:
        return Peer(name, str(error), None)
    return Peer(name, f'prune(model, "{recipe}").', partial(prune, recipe=recipe), schedule_of(recipe))


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
