"""The sizes of a text decoder that its costs follow from, read from the decoder that transformers builds.

What a configuration means is in its family's code: names, defaults and exceptions differ from family to family. So
the decoder is built from it, on the meta device, where no weight is held, and its matrices are looked at.
"""

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_MAPPING, DynamicCache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin

from vtw_demo.errors import UserError
from vtw_demo.withdrawal.architectures import (
    ATTENTION_TYPES,
    INDEXED_ATTENTION,
    LAYER_TYPES,
    find_attention,
    find_decoder,
    key_sources,
    layer_types,
)

_OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "dense")
_DELTA_RULE_CHUNK = 64


@dataclass(frozen=True)
class Recurrence:
    """What a recurrent layer, or a convolution, does from token to token, and what it keeps of it."""

    channels: int  # of its convolution along the sequence
    kernel: int
    chunk: int  # tokens; linear attention and Mamba run on chunks, of which the last one is filled up
    per_token: int  # multiply-adds for each token of a chunk, all heads together; 0 for a convolution alone
    per_pair: int  # multiply-adds for each pair of the states before, between and after chunks
    state: int  # numbers in the cache, however many tokens there have been

    def multiply_adds(self, tokens: int) -> int:
        convolved = max(tokens, self.kernel) + self.kernel - 1
        chunks = -(-tokens // self.chunk)
        scanned = chunks * self.chunk * self.per_token + (chunks + 1) ** 2 * self.per_pair
        return convolved * self.channels * self.kernel + scanned


@dataclass(frozen=True)
class LayerShape:
    """What one decoder layer's costs follow from."""

    projections: int  # numbers in the matrices of attention that a token is multiplied with
    mlp: int  # in all others; of a mixture of experts in the router and as many experts as run on a token
    visual_mlp: int  # the same for a visual token, if these have experts of their own (ernie4_5_vl_moe)
    attention: int  # multiply-adds for each pair of a query and a key, all heads together
    keys_of: int  # the layer whose keys and values this one attends to: itself, but where it shares another's
    only_last_position: bool  # whether it runs at the last position of a prompt alone (gemma4's last layers)
    cached: int  # numbers in the KV cache for each token that it holds; 0 where another layer's are shared
    window: int | None  # the sliding window or chunk of the KV cache; None where it holds all tokens
    recurrence: Recurrence | None = None  # what goes on between tokens in a layer that doesn't attend


@dataclass(frozen=True)
class DecoderShape:
    """What a text decoder's costs follow from."""

    layers: tuple[LayerShape, ...]
    before: int  # numbers in its matrices before the first layer; 0 but in gemma3n, gemma4
    after: int  # and after the last
    head: int  # numbers in the language model head
    reads_all: bool  # whether the head runs at all positions in `generate` too (minicpmv4_6, minicpm_ocr)


def decoder_shape(config: PreTrainedConfig) -> DecoderShape:
    """The shape of the text decoder that `config` describes, its own or that of the vision-language model around it.

    The first call for a configuration takes some tenths of a second, further ones about a millisecond.
    """
    text = config.get_text_config(decoder=True)
    key = (type(config), text._attn_implementation, text.to_json_string(use_diff=False))
    if key not in _known:
        _known[key] = _read(config)
    return _known[key]


_known: dict[tuple[type, str | None, str], DecoderShape] = {}


def _read(config: PreTrainedConfig) -> DecoderShape:
    text = config.get_text_config(decoder=True)
    if unknown := set(getattr(text, "layer_types", None) or ()) - LAYER_TYPES:
        raise UserError(f"{type(text).__name__} has layers of the kinds {sorted(unknown)}, whose costs aren't known.")
    decoder = _on_the_meta_device(config)
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise UserError(f"{type(decoder).__name__} has no decoder layers in `layers`, so its costs can't be told.")
    sources, kinds = key_sources(text, len(layers)), layer_types(text, len(layers))
    # gemma4, not with flash attention: the last layers have no keys of their own, and only what is read of them is
    # computed. Another family's model, such as LLaVA, doesn't hand on what that is.
    ends_early = (
        "logits_to_keep" in inspect.signature(decoder.forward).parameters
        and "flash" not in str(text._attn_implementation)
        and type(text).__module__ == type(config).__module__
    )
    shapes = tuple(
        _read_layer(layer, cache, source, ends_early and source != index)
        if kind in ATTENTION_TYPES | {INDEXED_ATTENTION}
        else _read_other_layer(layer, source)
        for index, (layer, cache, source, kind) in enumerate(
            zip(layers, DynamicCache(config=text).layers, sources, kinds, strict=True)
        )
    )
    before = after = 0
    for name, part in decoder.named_children():
        matrices = part if isinstance(part, nn.ModuleList) else (part,)
        numbers = sum(matrix.weight.numel() for matrix in matrices if isinstance(matrix, nn.Linear))
        if "unembed" in name:
            after += numbers
        else:
            before += numbers
    known: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    model: Any = known.get(type(config), None)
    has_head = "lm_head.weight" in (getattr(model, "_tied_weights_keys", None) or ())  # not that of a model inside
    reads_all = has_head and "logits_to_keep" not in inspect.signature(model.forward).parameters
    return DecoderShape(shapes, before, after, text.hidden_size * text.vocab_size, reads_all)


def _on_the_meta_device(config: PreTrainedConfig) -> Any:
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"  # needs no package
    text = config.get_text_config(decoder=True)
    # Not all text decoders can be had without the model around them; of some models the other parts need packages.
    known: Any = ((MODEL_MAPPING, text), (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, config))
    for mapping, part in known:
        if type(part) in mapping:
            with torch.device("meta"):
                return find_decoder(mapping[type(part)](part))
    raise UserError(f"transformers knows no model for a {type(config).__name__}, so its costs can't be told.")


def _read_layer(layer: Any, cache: Any, source: int, only_last_position: bool) -> LayerShape:
    attention = find_attention(layer)
    output = next((getattr(attention, name) for name in _OUTPUT_PROJECTIONS if hasattr(attention, name)), None)
    key_dim = getattr(attention, "qk_head_dim", None) or getattr(attention, "head_dim", None)
    if not isinstance(output, nn.Linear) or key_dim is None:
        raise UserError(f"{type(layer).__name__} has no attention whose heads can be told, nor can its costs.")
    value_dim = getattr(attention, "v_head_dim", key_dim)
    heads = output.in_features // value_dim
    if not isinstance(cache, CacheLayerMixin):
        cached = 0
    elif hasattr(attention, "kv_a_proj_with_mqa"):
        cached = attention.kv_a_proj_with_mqa.out_features
    else:
        cached = heads // getattr(attention, "num_key_value_groups", 1) * (key_dim + value_dim)
    passes = 2 if hasattr(attention, "lambda_q1") else 1  # diffllama attends to each half of the values
    pairs = passes * heads * (key_dim + value_dim)
    if (indexer := getattr(attention, "indexer", None)) is not None:
        pairs += indexer.n_heads * (indexer.head_dim + 1)
        cached += indexer.head_dim
    sizes = _sizes(layer)
    projections = _size_of(layer, attention, sizes)
    other = sum(sizes.values()) - projections
    if hasattr(layer, "altup"):
        # gemma3n's alternating updates use one of their matrices again, and multiply their inputs with each other.
        config = layer.altup.config
        other += layer.altup.modality_router.weight.numel() + config.hidden_size * config.altup_num_inputs**2
    text_experts, visual_experts = (
        sum(size for name, size in sizes.items() if f".{kind}_moe." in name) for kind in ("text", "vision")
    )
    return LayerShape(
        projections=projections,
        mlp=other - visual_experts,
        visual_mlp=other - text_experts,
        attention=pairs,
        keys_of=source,
        only_last_position=only_last_position,
        cached=cached,
        window=getattr(cache, "sliding_window", None),
    )


def _read_other_layer(layer: Any, source: int) -> LayerShape:
    """Of a recurrent layer, a convolution, or an MLP alone."""
    sizes = _sizes(layer)
    for mixer in layer.children():
        convolution = next((part for part in mixer.children() if isinstance(part, nn.Conv1d)), None)
        if convolution is None:
            continue
        chunk, per_token, per_pair, state = 1, 0, 0, 0
        if hasattr(mixer, "head_k_dim"):  # the gated delta rule, whose triangular systems torch's counter leaves out
            heads, key_dim, value_dim = mixer.num_v_heads, mixer.head_k_dim, mixer.head_v_dim
            chunk, state = _DELTA_RULE_CHUNK, heads * key_dim * value_dim
            per_token = heads * chunk * (2 * key_dim + value_dim) + 3 * state
        elif hasattr(mixer, "ssm_state_size"):  # Mamba 2
            heads, head_dim, state_dim = mixer.num_heads, mixer.head_dim, mixer.ssm_state_size
            chunk, state = mixer.chunk_size, heads * head_dim * state_dim
            per_token = heads * chunk * (state_dim + head_dim) + 2 * state
            per_pair = state
        channels, (kernel,) = convolution.out_channels, convolution.kernel_size
        recurrence = Recurrence(channels, kernel, chunk, per_token, per_pair, state + channels * kernel)
        projections = _size_of(layer, mixer, sizes)
        mlp = sum(sizes.values()) - projections
        return LayerShape(projections, mlp, mlp, 0, source, False, 0, None, recurrence)
    mlp = sum(sizes.values())
    return LayerShape(0, mlp, mlp, 0, source, False, 0, None)


def _sizes(layer: nn.Module) -> dict[str, int]:
    """How many numbers of each of a layer's modules a token is multiplied with."""
    return {name: _numbers_per_token(module, layer) for name, module in layer.named_modules()}


def _size_of(layer: nn.Module, part: nn.Module, sizes: dict[str, int]) -> int:
    name = next(name for name, child in layer.named_children() if child is part)
    return sum(size for inner, size in sizes.items() if inner.startswith(f"{name}."))


def _numbers_per_token(module: nn.Module, layer: nn.Module) -> int:
    """How many numbers of a module's own matrices a token is multiplied with."""
    if isinstance(module, nn.Linear):
        return module.weight.numel()
    if isinstance(module, nn.Conv1d):
        return 0
    matrices = {
        name: parameter
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim > 1 and not name.endswith("bias")
    }
    if not matrices or "Norm" in type(module).__name__:
        return 0
    if {matrix.ndim for matrix in matrices.values()} == {3}:
        # llama4 runs every expert on every token.
        runs_all = type(module).__name__ == "Llama4TextExperts"
        experts = None if runs_all else _experts_per_token(layer)
        return sum(matrix[:experts].numel() for matrix in matrices.values())
    if "Router" in type(module).__name__ and matrices.keys() == {"weight"}:
        return matrices["weight"].numel()
    raise UserError(
        f"{type(layer).__name__} has matrices of the kind {type(module).__name__}, of which it can't be told how often "
        "a token is multiplied with them, nor what the layer costs."
    )


def _experts_per_token(layer: nn.Module) -> int:
    for module in layer.modules():
        if isinstance(count := getattr(module, "top_k", None), int):
            return count
    if isinstance(count := getattr(getattr(layer, "config", None), "top_k_experts", None), int):
        return count
    raise UserError(f"{type(layer).__name__} doesn't say how many experts a token is sent to; costs can't be told.")
