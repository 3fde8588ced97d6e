"""What a prefill costs in FLOPs and what its KV cache takes in bytes, in closed form.

Layers below the withdrawal layer K run on every token of the prompt, layers from K on without the visual
tokens (arXiv 2405.05803, section 4). Everything is for one sequence; a batch of equal rows costs as many
times as much. The vision encoder and the projector aren't counted: withdrawal leaves them as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedConfig

# Decoders whose MLP is two matrices; all others have a gate, the third. Configurations don't say it.
_TWO_MATRIX_MLP = frozenset(
    {"apertus", "arcee", "biogpt", "jais2", "nanochat", "nemotron", "opt", "persimmon", "phi", "starcoder2"}
)
_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class LayerFlops:
    """FLOPs of one decoder layer in a prefill, two for each multiply-add.

    - `tokens`: positions that this layer runs on.
    - `projections`: query, key, value and output projection.
    - `attention`: query times key and weights times value, counted as the full square of `tokens`, though a
      causal kernel may skip the half above the diagonal. So does torch's FLOP counter.
    - `mlp`: the two matrix products of the MLP, or three where it is gated.

    Raises ValueError for a number below 0.
    """

    tokens: int
    projections: int
    attention: int
    mlp: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            _check_count(name, value)

    @property
    def total(self) -> int:
        return self.projections + self.attention + self.mlp


@dataclass(frozen=True)
class PrefillFlops:
    """FLOPs of a prefill: its decoder layers in the order in which they run, and the language model head.

    Raises ValueError without layers, for a negative head, and if a layer runs on more tokens than the one
    before it.
    """

    layers: tuple[LayerFlops, ...]
    head: int

    def __post_init__(self) -> None:
        _check_count("head", self.head)
        if not self.layers:
            raise ValueError("A prefill has at least one decoder layer; layers is empty.")
        tokens = [layer.tokens for layer in self.layers]
        if tokens != sorted(tokens, reverse=True):
            raise ValueError(f"Tokens that have left the sequence don't come back; layers have {tokens}.")

    @property
    def total(self) -> int:
        return sum(layer.total for layer in self.layers) + self.head


def prefill_flops(
    config: PreTrainedConfig,
    prompt_tokens: int,
    visual_tokens: int,
    layer: int,
    gated_mlp: bool | None = None,
) -> int:
    """FLOPs of the decoder's prefill of one prompt, the sum of `prefill_flops_by_layer`."""
    return prefill_flops_by_layer(config, prompt_tokens, visual_tokens, layer, gated_mlp).total


def prefill_flops_by_layer(
    config: PreTrainedConfig,
    prompt_tokens: int,
    visual_tokens: int,
    layer: int,
    gated_mlp: bool | None = None,
) -> PrefillFlops:
    """FLOPs of the decoder's prefill of one prompt, layer by layer.

    - `config`: of a text decoder, or of a vision-language model that holds one.
    - `prompt_tokens`: positions of the prompt, visual ones counted; `visual_tokens`: how many of them are.
    - `layer`: the withdrawal layer K; K = L, the number of decoder layers, withdraws nothing.
    - `gated_mlp`: whether the MLP has a gate; None decides by the model type.

    What is counted is matrix products, two FLOPs for each multiply-add, as torch's FLOP counter counts them:
    the projections with grouped-query heads, the products of attention as the full square of queries and keys
    (no half is taken off for causality), the MLP, and the head at the last position only, as `generate` runs
    it. Embeddings, norms, rotary embeddings, biases, activations and softmax aren't.

    Raises ValueError for numbers that are no counts, more visual tokens than prompt tokens, K outside 1 to L,
    and decoders whose layers this doesn't describe (mixture of experts, latent or linear attention).
    """
    shape = _DecoderShape.of(config, gated_mlp)
    layers = []
    for tokens in _tokens_by_layer(shape.layers, prompt_tokens, visual_tokens, layer):
        query_size = shape.heads * shape.head_dim
        key_size = shape.key_value_heads * shape.head_dim
        layers.append(
            LayerFlops(
                tokens=tokens,
                projections=2 * tokens * shape.hidden * (2 * query_size + 2 * key_size),
                attention=2 * 2 * tokens * tokens * query_size,
                mlp=2 * tokens * shape.hidden * shape.intermediate * (3 if shape.gated_mlp else 2),
            )
        )
    return PrefillFlops(layers=tuple(layers), head=2 * shape.hidden * shape.vocabulary)


def kv_cache_bytes(
    config: PreTrainedConfig,
    prompt_tokens: int,
    visual_tokens: int,
    layer: int,
    decoded_tokens: int = 0,
    bytes_per_element: int = 2,
) -> int:
    """Bytes of the KV cache of one sequence, the sum of `kv_cache_bytes_by_layer`."""
    return sum(kv_cache_bytes_by_layer(config, prompt_tokens, visual_tokens, layer, decoded_tokens, bytes_per_element))


def kv_cache_bytes_by_layer(
    config: PreTrainedConfig,
    prompt_tokens: int,
    visual_tokens: int,
    layer: int,
    decoded_tokens: int = 0,
    bytes_per_element: int = 2,
) -> tuple[int, ...]:
    """Bytes of the KV cache of one sequence, layer by layer: keys and values of the tokens that it holds.

    - `config`, `prompt_tokens`, `visual_tokens` and `layer` as in `prefill_flops_by_layer`.
    - `decoded_tokens`: tokens that have run through the model after the prompt. A `generate` that returned n
      new tokens has decoded n - 1, since the last one is never fed back.
    - `bytes_per_element`: 2 in float16 and bfloat16, 4 in float32.

    A layer with a sliding window of w tokens holds the last w - 1 of them at most, as transformers' growing
    cache does.

    Raises ValueError as `prefill_flops_by_layer` does.
    """
    shape = _DecoderShape.of(config, None)
    _check_count("decoded_tokens", decoded_tokens)
    _check_count("bytes_per_element", bytes_per_element, at_least=1)
    bytes_per_token = 2 * shape.key_value_heads * shape.head_dim * bytes_per_element
    tokens_by_layer = _tokens_by_layer(shape.layers, prompt_tokens, visual_tokens, layer)
    return tuple(
        (tokens + decoded_tokens if window is None else min(tokens + decoded_tokens, window - 1)) * bytes_per_token
        for tokens, window in zip(tokens_by_layer, shape.sliding_windows, strict=True)
    )


def flops_left(config: PreTrainedConfig, prompt_tokens: int, visual_tokens: int) -> tuple[float, ...] | None:
    """The share of a prefill's FLOPs left at each K from 1 to L - 1; None for decoders whose costs aren't known."""
    return _shares_left(prefill_flops, config, prompt_tokens, visual_tokens)


def cache_left(config: PreTrainedConfig, prompt_tokens: int, visual_tokens: int) -> tuple[float, ...] | None:
    """The share of a prompt's KV cache left at each K from 1 to L - 1; None for decoders whose costs aren't known."""
    return _shares_left(kv_cache_bytes, config, prompt_tokens, visual_tokens)


def _shares_left(
    cost: Callable[[PreTrainedConfig, int, int, int], int],
    config: PreTrainedConfig,
    prompt_tokens: int,
    visual_tokens: int,
) -> tuple[float, ...] | None:
    try:
        layers = _DecoderShape.of(config, None).layers
    except ValueError:
        return None
    costs = [cost(config, prompt_tokens, visual_tokens, layer) for layer in range(1, layers + 1)]
    return tuple(part / costs[-1] for part in costs[:-1])


@dataclass(frozen=True)
class _DecoderShape:
    """The numbers of a text decoder that its costs depend on."""

    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    head_dim: int
    intermediate: int
    gated_mlp: bool
    vocabulary: int
    sliding_windows: tuple[int | None, ...]
    """Layer by layer; None where a layer attends to all that comes before."""

    @classmethod
    def of(cls, config: PreTrainedConfig, gated_mlp: bool | None) -> "_DecoderShape":
        text = config.get_text_config()
        name = type(text).__name__

        def number(*names: str) -> int:
            for attribute in names:
                value = getattr(text, attribute, None)
                if isinstance(value, int):
                    return value
            raise ValueError(f"{name} has no {' or '.join(names)}, so its costs can't be told.")

        for attribute in (*_EXPERT_COUNTS, "kv_lora_rank"):
            if getattr(text, attribute, None):
                raise ValueError(
                    f"{name} has {attribute} = {getattr(text, attribute)}; costs are known for decoders with "
                    "plain multi-head or grouped-query attention and one MLP a layer."
                )
        hidden, heads, layers = (
            number(attribute) for attribute in ("hidden_size", "num_attention_heads", "num_hidden_layers")
        )
        window = getattr(text, "sliding_window", None)
        usual = "full_attention" if window is None else "sliding_attention"
        kinds = getattr(text, "layer_types", None) or [usual] * layers
        unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
        if unknown:
            raise ValueError(
                f"{name} has layers of the kinds {unknown}; costs are known for full and sliding attention."
            )
        return cls(
            layers=layers,
            hidden=hidden,
            heads=heads,
            key_value_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or hidden // heads,
            intermediate=number("intermediate_size", "ffn_dim"),
            gated_mlp=text.model_type not in _TWO_MATRIX_MLP if gated_mlp is None else gated_mlp,
            vocabulary=number("vocab_size"),
            sliding_windows=tuple(window if kind == "sliding_attention" else None for kind in kinds),
        )


def _tokens_by_layer(layers: int, prompt_tokens: int, visual_tokens: int, layer: int) -> list[int]:
    """How many positions of the prompt each decoder layer runs on."""
    _check_count("prompt_tokens", prompt_tokens, at_least=1)
    _check_count("visual_tokens", visual_tokens)
    _check_count("layer", layer, at_least=1)
    if visual_tokens > prompt_tokens:
        raise ValueError(
            f"visual_tokens is {visual_tokens}, more than the {prompt_tokens} tokens of the whole prompt; "
            "prompt_tokens counts the visual ones too."
        )
    if layer > layers:
        raise ValueError(
            f"The withdrawal layer must be from 1 to {layers}, the number of decoder layers; this is {layer}."
        )
    kept = max(prompt_tokens - visual_tokens, 1)  # a layer can't run on nothing: an empty slot stays
    return [prompt_tokens] * layer + [kept] * (layers - layer)


def _check_count(name: str, value: int, at_least: int = 0) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(f"{name} must be an integer of at least {at_least}; this is {value!r}.")
