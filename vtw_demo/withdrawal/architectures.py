"""What single families of models do beyond handing every decoder layer the same sequence of tokens.

Decoders that withdrawal can mean nothing in are refused here.
"""

import inspect
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, masking_utils

from vtw_demo.errors import UserError
from vtw_demo.files import data_beside
from vtw_demo.withdrawal.segments import visual_token_ids

INNER_GENERATE = ("blip-2", "instructblip", "instructblipvideo", "kosmos-2", "kosmos-2.5")
"""Model types whose `generate` hands embeddings to a language model's own `generate`, past the model's forward."""

NOT_UNDERSTOOD: dict[str, str] = data_beside(__file__, "not_understood.json")
"""By model type, what stands in the way of withdrawal. A token could leave there, too; it isn't written yet."""

ATTENTION_TYPES = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of decoder layers in which a token that is gone is one that no other attends to."""

INDEXED_ATTENTION = "indexed_attention"
"""Layers that attend to what an indexer chooses among the keys there are."""

STATE_TYPES = {"linear_attention", "conv"}
"""Recurrent layers and convolutions, whose state is that of the tokens which they have run on."""

LAYER_TYPES = ATTENTION_TYPES | STATE_TYPES | {INDEXED_ATTENTION, "mlp", "moe"}


def find_decoder(model: PreTrainedModel) -> Any:
    """The module that runs the decoder layers."""
    decoder = traced(model.get_decoder())
    # llama4 answers with a language model, head included.
    return decoder if hasattr(decoder, "layers") else traced(getattr(decoder, "model", decoder))


def traced(module: Any) -> Any:
    """What torch.compile's wrapper holds, and anything else itself."""
    return getattr(module, "_orig_mod", module)


def find_model(handed: Any) -> Any:
    """The model that runs in what was handed over, which may be one of torch.compile's or PEFT's wrappers.

    Raises UserError for one in which withdrawal can't mean anything, that isn't understood, or that is no model.
    """
    model = traced(handed)
    model = traced(model.get_base_model()) if hasattr(model, "get_base_model") else model
    name = type(handed).__name__
    kinds = {type(module) for module in model.modules()} if isinstance(model, nn.Module) else ()
    if any(base.__name__ in ("FSDPModule", "FullyShardedDataParallel") for kind in kinds for base in kind.__mro__):
        raise UserError(
            f"This {name} is sharded by FSDP, and each process holds a part of its weights. Hand over a model that is "
            'whole in one process: load it with from_pretrained, on several GPUs with device_map="auto".'
        )
    if not isinstance(model, PreTrainedModel):
        inside = [part for part in ("module", "model") if isinstance(getattr(model, part, None), PreTrainedModel)]
        advice = f"Hand over its model, `.{inside[0]}`." if inside else "Hand over what from_pretrained returns."
        raise UserError(f"A {name} is no vision-language model of transformers. {advice}")
    check_family(model)
    return model


def check_family(model: PreTrainedModel) -> None:
    """Raise UserError for a model in which withdrawal can't mean anything, or that isn't understood."""
    name, config = type(model).__name__, model.config
    refused = f"{name} can't be used with withdraw:"
    if config.is_encoder_decoder:
        raise UserError(f"{refused} it is an encoder-decoder, and its decoder has no visual tokens.")
    if config.model_type in INNER_GENERATE:
        raise UserError(
            f"{refused} its generate hands embeddings, not token ids, to the generate of its language model, where "
            "visual tokens can't be found."
        )
    if (reason := NOT_UNDERSTOOD.get(config.model_type)) is not None:
        raise UserError(f"{refused} {reason}.")
    if isinstance(getattr(model, "thinker", None), PreTrainedModel):
        raise UserError(f"{refused} a model inside it answers in text. Hand over that one, `.thinker`.")
    if "decoder_input_ids" in inspect.signature(model.forward).parameters:
        raise UserError(f"{refused} its visual tokens run through an encoder's layers, not through its decoder's.")
    decoder = find_decoder(model)
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise UserError(f"{refused} its decoder, a {type(decoder).__name__}, has no decoder layers in `layers`.")
    kinds = layer_types(decoder.config, len(layers))
    if unknown := set(kinds) - LAYER_TYPES:
        raise UserError(f"{refused} it has decoder layers of type {sorted(unknown)}, which aren't understood.")
    for layer, kind in zip(layers, kinds, strict=True):
        if kind in ATTENTION_TYPES and find_attention(layer) is None:
            raise UserError(
                f"{refused} not all of its decoder layers attend to the tokens of their own sequence; it has a "
                f"{type(layer).__name__} (cross-attention)."
            )
    if STATE_TYPES & set(kinds) and not hasattr(masking_utils, "create_recurrent_attention_mask"):
        raise UserError(f"{refused} of its recurrent layers withdrawal knows those of transformers from 5.17 on.")
    if INDEXED_ATTENTION in kinds and (
        shares_keys(decoder.config, len(layers)) or "shared" in (getattr(decoder.config, "indexer_types", None) or ())
    ):
        raise UserError(
            f"{refused} its decoder layers share what an indexer has chosen, or the keys it chooses among, by places "
            "that aren't the same once tokens have left."
        )
    visual_token_ids(config)


def layer_types(config: PreTrainedConfig, layer_count: int) -> list[str]:
    return list(getattr(config, "layer_types", None) or ["full_attention"] * layer_count)


def find_attention(layer: Any) -> Any:
    """The module by which a decoder layer attends; None for a recurrent layer, a convolution or an MLP alone."""
    attention, mixer = (getattr(layer, name, None) for name in ("self_attn", "mixer"))
    return mixer if attention is None and hasattr(mixer, "q_proj") else attention


def check_flash_window(module: nn.Module, sequence_length: int) -> None:
    """Raise RuntimeError where flash attention would count a sliding window in kept tokens."""
    window = getattr(find_attention(module), "sliding_window", None)
    if window is not None and sequence_length > window:
        raise RuntimeError(
            f"With flash attention, a sliding window of {window} tokens would be counted without the "
            f'withdrawn ones, among {sequence_length}. Load the model with attn_implementation="sdpa" or "eager".'
        )


def unlike_llava(model: PreTrainedModel) -> str | None:
    """How more depends on a token's place in the decoder of `model` than its position, as a verb; None if nothing."""
    decoder = find_decoder(model)
    if any(name.startswith("deepstack") for name in inspect.signature(decoder.forward).parameters):
        return "adds visual features between decoder layers"
    if set(layer_types(decoder.config, len(decoder.layers))) - ATTENTION_TYPES:
        return "has layers other than plain attention"
    if shares_keys(decoder.config, len(decoder.layers)):
        return "shares keys between decoder layers"
    return "scales attention by position" if any(map(scales_attention_by_position, decoder.layers)) else None


def answer_token_type(config: PreTrainedConfig) -> int:
    """The token type of an answer's tokens. In paligemma 0 stands for the prompt, which attends in both directions."""
    return 1 if config.model_type == "paligemma" else 0


def without_late_features(kwargs: dict[str, Any], layer: int) -> dict[str, Any]:
    """Arguments of a decoder without the visual features that it would add from layer K on (deepstack: qwen3_vl,
    granite4_vision, granite_docling): a list has those that follow layer 0, 1, ..., a dict those that precede a layer.
    """
    late = dict(kwargs)
    if isinstance(following := kwargs.get("deepstack_visual_embeds"), list | tuple):
        late["deepstack_visual_embeds"] = following[:layer]
    if isinstance(preceding := kwargs.get("deepstack_features"), dict):
        late["deepstack_features"] = {index: part for index, part in preceding.items() if index <= layer}
    return late


def adds_features_after(kwargs: dict[str, Any], layer: int) -> bool:
    """Whether the decoder is to add visual features to what comes out of layer `layer`, or of a later one."""
    following, preceding = kwargs.get("deepstack_visual_embeds"), kwargs.get("deepstack_features")
    after = len(following) if isinstance(following, list | tuple) else 0
    return after > layer or (isinstance(preceding, dict) and any(index > layer for index in preceding))


def key_sources(config: PreTrainedConfig, layer_count: int) -> list[int]:
    """For each decoder layer, the layer whose keys and values it attends to: itself, but in gemma3n and gemma4 the last
    layers use those of an earlier one of their type. If that is below K, the keys of visual tokens have to be masked.
    """
    if (sources := getattr(config, "kv_source_layers", None)) is not None:  # mistral_large4
        return list(sources)
    first_shared = layer_count - (getattr(config, "num_kv_shared_layers", None) or 0)
    sources = list(range(first_shared))
    last_of_type = {config.layer_types[source]: source for source in sources} if first_shared < layer_count else {}
    return sources + [last_of_type[config.layer_types[index]] for index in range(first_shared, layer_count)]


def shares_keys(config: PreTrainedConfig, layer_count: int) -> bool:
    return key_sources(config, layer_count) != list(range(layer_count))


def scales_attention_by_position(layer: Any) -> bool:
    """Whether a layer scales its queries by positions that it counts itself (llama4, layers without RoPE)."""
    attention = find_attention(layer)
    return bool(getattr(attention, "attn_temperature_tuning", False)) and not attention.use_rope


def rescale_query(attention: Any, query: torch.Tensor, past_length: int, kept: torch.Tensor) -> torch.Tensor:
    """A query projection's output, shape (batch, kept, heads x head_dim), so scaled that llama4's own scaling makes it
    right. `kept`, shape (batch, kept): the positions; llama4 counts from `past_length` on as if none were missing.
    """

    def temperature(position: torch.Tensor) -> torch.Tensor:
        steps = torch.floor((past_length + position.float() + 1.0) / attention.floor_scale)
        return torch.log1p(steps) * attention.attn_scale + 1.0

    ratio = temperature(kept) / temperature(torch.arange(kept.shape[1], device=kept.device))
    return (query * ratio[..., None]).to(query.dtype)
