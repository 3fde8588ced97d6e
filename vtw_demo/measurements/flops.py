"""What a prefill costs in FLOPs and what its KV cache takes in bytes, in closed form, for one sequence.

Layers below the withdrawal layer K run on every token of the prompt, layers from K on without the visual tokens (arXiv
2405.05803, section 4); other methods take them out in parts, at several layers. The vision encoder and the projector,
which all of them leave as they are, aren't counted.
"""

from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass

from transformers import PreTrainedConfig

from vtw_demo.errors import UserError
from vtw_demo.formats import PlainData
from vtw_demo.measurements.decoder_shape import DecoderShape, decoder_shape
from vtw_demo.withdrawal.withdraw import check_layer

Schedule = Mapping[int, float]
"""By decoder layer, the share of the prompt's visual tokens that is left from there on, as recipes of `prune` say it:
as many tokens leave, rounded; of `random_tokens` they may be text. Withdrawal at K is `{K: 0.0}`."""


@dataclass(frozen=True)
class LayerFlops:
    """FLOPs of one decoder layer in a prefill, two for each multiply-add."""

    tokens: int  # positions that it runs on
    projections: int  # the matrices of attention, or of what stands in its place
    attention: int  # query times key and weights times value; or the convolution and the scan of a recurrent layer
    mlp: int  # its other matrices; of a mixture of experts the router and those experts that run on a token

    @property
    def total(self) -> int:
        return self.projections + self.attention + self.mlp


@dataclass(frozen=True)
class PrefillFlops:
    layers: tuple[LayerFlops, ...]
    head: int
    around: int  # the decoder's matrices before the first layer and after the last; 0 but in gemma3n and gemma4

    @property
    def total(self) -> int:
        return sum(layer.total for layer in self.layers) + self.head + self.around


def prefill_flops(config: PreTrainedConfig, prompt_tokens: int, visual_tokens: int, layer: int | Schedule) -> int:
    """The sum of `prefill_flops_by_layer`."""
    return prefill_flops_by_layer(config, prompt_tokens, visual_tokens, layer).total


def continued_flops(
    config: PreTrainedConfig, sequence_tokens: int, visual_tokens: int, layer: int | Schedule, held_tokens: int
) -> int:
    """FLOPs of a pass that goes on with a KV cache: of the `sequence_tokens` of a conversation, visual ones counted, it
    runs on those after the first `held_tokens`, all of them text, in each layer, and they attend to all that the layer
    holds. What is counted, and errors, as in `prefill_flops_by_layer`."""
    assert 0 <= held_tokens < sequence_tokens
    decoder, further = decoder_shape(config), sequence_tokens - held_tokens
    return _prefill_flops(decoder, sequence_tokens, visual_tokens, layer, further).total


def prefill_flops_by_layer(
    config: PreTrainedConfig, prompt_tokens: int, visual_tokens: int, layer: int | Schedule
) -> PrefillFlops:
    """FLOPs of the decoder's prefill of one prompt, layer by layer.

    - `config`: of a text decoder, or of a vision-language model that holds one.
    - `prompt_tokens`: positions of the prompt, visual ones counted; `visual_tokens`: how many of them are.
    - `layer`: the withdrawal layer K, where K = L, the number of decoder layers, withdraws nothing; or a schedule, of
      which an empty one does the same.

    What is counted is matrix products, as torch's FLOP counter counts them: attention as the full square of queries and
    keys, and the head at the last position only, as `generate` runs it. Embeddings, norms, rotary embeddings, biases,
    activations and softmax aren't; nor is what `fastv` and `pyramid_drop` take to rank tokens, a row of attention each.

    - Of a mixture of experts those count that a token is sent to; in llama4 all of them, as transformers runs it.
    - In ernie4_5_vl_moe a picture's smaller experts run on the two marks around it, too; one picture is counted.
    - A layer that uses another's keys and values (gemma3n, gemma4) has as many keys as that one; if that one is below
      K, they include the visual tokens', which are masked.
    - gemma4's last layers run at the last position alone, as they do in `generate` without flash attention.

    Raises ValueError for K outside 1 to L, and for decoders that `decoder_shape` doesn't understand.
    """
    return _prefill_flops(decoder_shape(config), prompt_tokens, visual_tokens, layer)


def kv_cache_bytes_by_layer(
    config: PreTrainedConfig,
    prompt_tokens: int,
    visual_tokens: int,
    layer: int | Schedule,
    decoded_tokens: int = 0,
    bytes_per_element: int = 2,
) -> tuple[int, ...]:
    """Bytes of the KV cache of one sequence, layer by layer, as transformers' growing cache holds them.

    - `config`, `prompt_tokens`, `visual_tokens` and `layer` as in `prefill_flops_by_layer`.
    - `decoded_tokens`: that have run through the model after the prompt: all new ones but the last, which isn't fed
      back.
    - `bytes_per_element`: 2 in float16 and bfloat16, 4 in float32.

    A layer with a sliding window or chunks of w tokens holds the last w - 1 of them at most; one that uses another's
    keys and values holds nothing; latent attention holds the latent vector and the rotary part of the key, which all
    heads share; an indexer holds a key of its own. A recurrent layer or a convolution holds a state of one size.
    """
    held = _cached_numbers(decoder_shape(config), prompt_tokens, visual_tokens, layer, decoded_tokens)
    return tuple(numbers * bytes_per_element for numbers in held)


@dataclass(frozen=True)
class LayerCost:
    """What one decoder layer costs in a prefill, or several of them together; `tokens` are those that it runs on."""

    tokens: int
    flops: int
    kv_cache_bytes: int


@dataclass(frozen=True)
class Staircase(PlainData):
    """What each decoder layer costs for one prompt, in both runs, and in one beside them; the head is in none."""

    layer: int
    full: tuple[LayerCost, ...]
    withdrawn: tuple[LayerCost, ...]
    beside: tuple[LayerCost, ...] | None = None

    @property
    def full_total(self) -> LayerCost:
        return _total(self.full)

    @property
    def withdrawn_total(self) -> LayerCost:
        return _total(self.withdrawn)

    @property
    def beside_total(self) -> LayerCost | None:
        return None if self.beside is None else _total(self.beside)


def staircase(
    config: PreTrainedConfig,
    prompt_tokens: int,
    visual_tokens: int,
    layer: int,
    bytes_per_element: int = 2,
    beside: Schedule | None = None,
) -> Staircase:
    """Of one prompt's prefill, and of one with another schedule; arguments and errors as of
    `kv_cache_bytes_by_layer`."""

    def costs(at: int | Schedule) -> tuple[LayerCost, ...]:
        prompt = (config, prompt_tokens, visual_tokens, at)
        flops = prefill_flops_by_layer(*prompt).layers
        cache = kv_cache_bytes_by_layer(*prompt, bytes_per_element=bytes_per_element)
        return tuple(LayerCost(part.tokens, part.total, held) for part, held in zip(flops, cache, strict=True))

    withdrawn = costs(layer)
    return Staircase(layer, costs(len(withdrawn)), withdrawn, None if beside is None else costs(beside))


def _total(costs: tuple[LayerCost, ...]) -> LayerCost:
    return LayerCost(*map(sum, zip(*map(astuple, costs), strict=True)))


def flops_left(config: PreTrainedConfig, prompt_tokens: int, visual_tokens: int) -> tuple[float, ...] | None:
    """The share of a prefill's FLOPs left at each K from 1 to L - 1; None for decoders whose costs aren't known."""
    size = prompt_tokens, visual_tokens
    return _shares_left(config, lambda decoder, layer: _prefill_flops(decoder, *size, layer).total)


def cache_left(config: PreTrainedConfig, prompt_tokens: int, visual_tokens: int) -> tuple[float, ...] | None:
    """The share of a prompt's KV cache left at each K from 1 to L - 1; None for decoders whose costs aren't known."""
    size = prompt_tokens, visual_tokens
    return _shares_left(config, lambda decoder, layer: sum(_cached_numbers(decoder, *size, layer)))


def _shares_left(config: PreTrainedConfig, cost: Callable[[DecoderShape, int], int]) -> tuple[float, ...] | None:
    try:
        decoder = decoder_shape(config)
    except UserError:
        return None
    costs = [cost(decoder, layer) for layer in range(1, len(decoder.layers) + 1)]
    return tuple(part / costs[-1] for part in costs[:-1])


def _prefill_flops(
    decoder: DecoderShape, prompt_tokens: int, visual_tokens: int, layer: int | Schedule, further: int | None = None
) -> PrefillFlops:
    """Of the whole prompt, or of the `further` tokens at its end."""
    left = visual_tokens_by_layer(len(decoder.layers), visual_tokens, layer)
    tokens = _tokens_by_layer(prompt_tokens, visual_tokens, left)
    layers = []
    for index, shape in enumerate(decoder.layers):
        queries = 1 if shape.only_last_position else further or tokens[index]
        visual = 0 if shape.only_last_position or further else left[index]
        if visual_tokens and not further and shape.visual_mlp != shape.mlp:
            visual += min(2, queries - visual)
        between = queries * tokens[shape.keys_of] * shape.attention
        if shape.recurrence is not None:
            between = shape.recurrence.multiply_adds(queries)
        mlp = (queries - visual) * shape.mlp + visual * shape.visual_mlp
        layers.append(LayerFlops(queries, 2 * queries * shape.projections, 2 * between, 2 * mlp))
    # A withdrawal hands on what the head reads, and no more.
    count = further or prompt_tokens
    after = count if further or min(left) == visual_tokens else 1
    around = 2 * (count * decoder.before + after * decoder.after)
    head = 2 * decoder.head * (count if decoder.reads_all else 1)
    return PrefillFlops(layers=tuple(layers), head=head, around=around)


def _cached_numbers(
    decoder: DecoderShape, prompt_tokens: int, visual_tokens: int, layer: int | Schedule, decoded_tokens: int = 0
) -> list[int]:
    left = visual_tokens_by_layer(len(decoder.layers), visual_tokens, layer)
    tokens = _tokens_by_layer(prompt_tokens, visual_tokens, left)
    held = (count + decoded_tokens for count in tokens)
    return [
        shape.cached * (count if shape.window is None else min(count, shape.window - 1))
        + (0 if shape.recurrence is None else shape.recurrence.state)
        for shape, count in zip(decoder.layers, held, strict=True)
    ]


def visual_tokens_by_layer(layers: int, visual_tokens: int, layer: int | Schedule) -> list[int]:
    """How many visual tokens each of so many decoder layers runs on."""
    schedule = layer if isinstance(layer, Mapping) else {check_layer(layer, layers): 0.0}
    left, shares = [], {-1: 1.0, **schedule}
    for index in range(layers):
        share = shares[max(at for at in shares if at <= index)]
        left.append(int(share * visual_tokens + 0.5))
    return left


def _tokens_by_layer(prompt_tokens: int, visual_tokens: int, left: list[int]) -> list[int]:
    assert 0 <= visual_tokens <= prompt_tokens
    # A layer can't run on nothing: an empty slot stays.
    return [max(prompt_tokens - visual_tokens + count, 1) for count in left]
