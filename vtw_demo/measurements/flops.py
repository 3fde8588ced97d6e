"""What a prefill costs in FLOPs and what its KV cache takes in bytes, in closed form.

Layers below the withdrawal layer K run on every token of the prompt, layers from K on without the visual
tokens (arXiv 2405.05803, section 4). Everything is for one sequence; a batch of equal rows costs as many
times as much. The vision encoder and the projector aren't counted: withdrawal leaves them as they are.
The sizes of a decoder are those of `vtw_demo.measurements.decoder_shape`.
"""

from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from typing import Any

from transformers import PreTrainedConfig

from vtw_demo.errors import UserError
from vtw_demo.measurements.decoder_shape import DecoderShape, decoder_shape


@dataclass(frozen=True)
class LayerFlops:
    """FLOPs of one decoder layer in a prefill, two for each multiply-add.

    - `tokens`: positions that this layer runs on.
    - `projections`: the matrices of attention, or of what stands in its place: query, key, value and output projection,
      latent ones, indexers', gates.
    - `attention`: query times key and weights times value, counted for every query with every key, though a
      causal kernel may skip the half above the diagonal. So does torch's FLOP counter. In a recurrent layer what goes
      from token to token instead: its convolution and the products of its scan.
    - `mlp`: the layer's other matrices: an MLP's two, or three where it is gated; of a mixture of experts the
      router, the shared experts and those that run on a token; and further ones, such as gemma3n has.
    """

    tokens: int
    projections: int
    attention: int
    mlp: int

    @property
    def total(self) -> int:
        return self.projections + self.attention + self.mlp


@dataclass(frozen=True)
class PrefillFlops:
    """FLOPs of a prefill: its decoder layers in the order in which they run, and the language model head.

    `around`: the decoder's matrices before the first layer and after the last; 0 but in gemma3n and gemma4.
    """

    layers: tuple[LayerFlops, ...]
    head: int
    around: int

    @property
    def total(self) -> int:
        return sum(layer.total for layer in self.layers) + self.head + self.around


def prefill_flops(config: PreTrainedConfig, prompt_tokens: int, visual_tokens: int, layer: int) -> int:
    """FLOPs of the decoder's prefill of one prompt, the sum of `prefill_flops_by_layer`."""
    return prefill_flops_by_layer(config, prompt_tokens, visual_tokens, layer).total


def prefill_flops_by_layer(
    config: PreTrainedConfig, prompt_tokens: int, visual_tokens: int, layer: int
) -> PrefillFlops:
    """FLOPs of the decoder's prefill of one prompt, layer by layer.

    - `config`: of a text decoder, or of a vision-language model that holds one.
    - `prompt_tokens`: positions of the prompt, visual ones counted; `visual_tokens`: how many of them are.
    - `layer`: the withdrawal layer K; K = L, the number of decoder layers, withdraws nothing.

    What is counted is matrix products, two FLOPs for each multiply-add, as torch's FLOP counter counts them:
    the projections with grouped-query heads, the products of attention as the full square of queries and keys
    (no half is taken off for causality, nothing for a sliding window), the MLP, and the head at the last position
    only, as `generate` runs it. Embeddings, norms, rotary embeddings, biases, activations and softmax aren't.

    - Of a mixture of experts those count that a token is sent to; in llama4 all of them, since transformers runs every
      expert on every token there.
    - ernie4_5_vl_moe's marks around a picture are counted as text, though a picture's smaller experts run on them.
    - A layer that uses another's keys and values (gemma3n, gemma4) has as many keys as that one; if that one is
      below K, they include the visual tokens', which are masked.
    - gemma4's last layers run at the last position alone, as they do in `generate` without flash attention.

    Raises ValueError for numbers that are no counts, more visual tokens than prompt tokens, K outside 1 to L,
    and decoders that `decoder_shape` doesn't understand.
    """
    return _prefill_flops(decoder_shape(config), prompt_tokens, visual_tokens, layer)


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

    They are those of transformers' growing cache. A layer with a sliding window or chunks of w tokens holds the last
    w - 1 of them at most; one that uses another's keys and values holds nothing; latent attention holds the latent
    vector and the rotary part of the key, which all heads share; an indexer holds a key of its own. A recurrent layer
    or a convolution holds a state of one size, here counted in `bytes_per_element` too.
    """
    _check_count("decoded_tokens", decoded_tokens)
    _check_count("bytes_per_element", bytes_per_element, at_least=1)
    held = _cached_numbers(decoder_shape(config), prompt_tokens, visual_tokens, layer, decoded_tokens)
    return tuple(numbers * bytes_per_element for numbers in held)


@dataclass(frozen=True)
class LayerCost:
    """What one decoder layer costs, or several of them together.

    - `tokens`: of the prompt, that the layer runs on in the prefill.
    - `flops`: of that.
    - `kv_cache_bytes`: its part of the KV cache.
    """

    tokens: int
    flops: int
    kv_cache_bytes: int


@dataclass(frozen=True)
class Staircase:
    """What each decoder layer costs for one prompt, in order, with every layer seeing the picture and withdrawn at
    `layer`. The language model head, which is the same in both runs, is in neither."""

    layer: int
    full: tuple[LayerCost, ...]
    withdrawn: tuple[LayerCost, ...]

    @property
    def full_total(self) -> LayerCost:
        return _total(self.full)

    @property
    def withdrawn_total(self) -> LayerCost:
        return _total(self.withdrawn)

    def to_json(self) -> dict[str, Any]:
        totals = {"full_total": asdict(self.full_total), "withdrawn_total": asdict(self.withdrawn_total)}
        return {**asdict(self), **totals}


def staircase(
    config: PreTrainedConfig,
    prompt_tokens: int,
    visual_tokens: int,
    layer: int,
    bytes_per_element: int = 2,
) -> Staircase:
    """What each layer's prefill of one prompt costs, and the KV cache that it leaves, in closed form (arXiv 2405.05803,
    section 4); arguments and errors as of `kv_cache_bytes_by_layer`.
    """

    def costs(withdrawal_layer: int) -> tuple[LayerCost, ...]:
        prompt = (config, prompt_tokens, visual_tokens, withdrawal_layer)
        flops = prefill_flops_by_layer(*prompt).layers
        cache = kv_cache_bytes_by_layer(*prompt, bytes_per_element=bytes_per_element)
        return tuple(LayerCost(part.tokens, part.total, held) for part, held in zip(flops, cache, strict=True))

    withdrawn = costs(layer)
    return Staircase(layer, costs(len(withdrawn)), withdrawn)


def _total(costs: tuple[LayerCost, ...]) -> LayerCost:
    return LayerCost(*map(sum, zip(*map(astuple, costs), strict=True)))


def flops_left(config: PreTrainedConfig, prompt_tokens: int, visual_tokens: int) -> tuple[float, ...] | None:
    """The share of a prefill's FLOPs left at each K from 1 to L - 1; None for decoders whose costs aren't known."""
    return _shares_left(
        config, lambda decoder, layer: _prefill_flops(decoder, prompt_tokens, visual_tokens, layer).total
    )


def cache_left(config: PreTrainedConfig, prompt_tokens: int, visual_tokens: int) -> tuple[float, ...] | None:
    """The share of a prompt's KV cache left at each K from 1 to L - 1; None for decoders whose costs aren't known."""
    return _shares_left(
        config, lambda decoder, layer: sum(_cached_numbers(decoder, prompt_tokens, visual_tokens, layer))
    )


def _shares_left(config: PreTrainedConfig, cost: Callable[[DecoderShape, int], int]) -> tuple[float, ...] | None:
    try:
        decoder = decoder_shape(config)
    except UserError:
        return None
    costs = [cost(decoder, layer) for layer in range(1, len(decoder.layers) + 1)]
    return tuple(part / costs[-1] for part in costs[:-1])


def _prefill_flops(decoder: DecoderShape, prompt_tokens: int, visual_tokens: int, layer: int) -> PrefillFlops:
    tokens = _tokens_by_layer(len(decoder.layers), prompt_tokens, visual_tokens, layer)
    layers = []
    for index, shape in enumerate(decoder.layers):
        queries = 1 if shape.only_last_position else tokens[index]
        visual = visual_tokens if index < layer and not shape.only_last_position else 0
        between = queries * tokens[shape.keys_of] * shape.attention
        if shape.recurrence is not None:
            between = shape.recurrence.multiply_adds(queries)
        layers.append(
            LayerFlops(
                tokens=queries,
                projections=2 * queries * shape.projections,
                attention=2 * between,
                mlp=2 * ((queries - visual) * shape.mlp + visual * shape.visual_mlp),
            )
        )
    # A withdrawal hands on what the head reads, and no more.
    after = 1 if visual_tokens and layer < len(layers) else prompt_tokens
    around = 2 * (prompt_tokens * decoder.before + after * decoder.after)
    head = 2 * decoder.head * (prompt_tokens if decoder.reads_all else 1)
    return PrefillFlops(layers=tuple(layers), head=head, around=around)


def _cached_numbers(
    decoder: DecoderShape, prompt_tokens: int, visual_tokens: int, layer: int, decoded_tokens: int = 0
) -> list[int]:
    """How many numbers each layer of the KV cache holds."""
    tokens = _tokens_by_layer(len(decoder.layers), prompt_tokens, visual_tokens, layer)
    held = [count + decoded_tokens for count in tokens]
    return [
        shape.cached * (count if shape.window is None else min(count, shape.window - 1))
        + (0 if shape.recurrence is None else shape.recurrence.state)
        for shape, count in zip(decoder.layers, held, strict=True)
    ]


def _tokens_by_layer(layers: int, prompt_tokens: int, visual_tokens: int, layer: int) -> list[int]:
    """How many positions of the prompt are in the sequence of each decoder layer."""
    _check_count("prompt_tokens", prompt_tokens, at_least=1)
    _check_count("visual_tokens", visual_tokens)
    _check_count("layer", layer, at_least=1)
    if visual_tokens > prompt_tokens:
        raise UserError(
            f"visual_tokens is {visual_tokens}, more than the {prompt_tokens} tokens of the whole prompt; "
            "prompt_tokens counts the visual ones too."
        )
    if layer > layers:
        raise UserError(
            f"The withdrawal layer must be from 1 to {layers}, the number of decoder layers; this is {layer}."
        )
    kept = max(prompt_tokens - visual_tokens, 1)  # a layer can't run on nothing: an empty slot stays
    return [prompt_tokens] * layer + [kept] * (layers - layer)


def _check_count(name: str, value: int, at_least: int = 0) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise UserError(f"{name} must be an integer of at least {at_least}; this is {value!r}.")
