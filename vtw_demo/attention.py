"""Attention mass: how much of its attention a position gives to each segment of the sequence, by layer.

Measured in a pass of its own, through transformers' attention interface: the outputs of attention come from
sdpa as ever, and beside them the rows of the attention matrix that are asked for, and no others, are computed
from the same queries and keys. So it works with thousands of visual tokens, where a full matrix wouldn't fit.
"""

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from vtw_demo.family_cases import find_decoder
from vtw_demo.kept_positions import keep_positions
from vtw_demo.segments import PADDING, Segment, segment_ids, visual_token_mask
from vtw_demo.teacher_forcing import check_prompt, check_prompt_end, with_answer
from vtw_demo.withdrawal import withdraw

Shares = tuple[float, ...]
"""The share of attention that each segment gets, in the order of `AttentionMass.segments`."""


@dataclass(frozen=True)
class AttentionMass:
    """The share of attention, mean over heads, that query positions give to each segment, layer by layer.

    - `segments`: names of the segments, in the order of every tuple of shares.
    - `last_prompt`: (layers, segments), the query that predicts answer token 0.
    - `answer`: (answer tokens, layers, segments); entry i is the position that holds answer token i, the
      query that predicts token i + 1. Empty where no answer was given.
    - `visual_tokens`: how many visual tokens the prompt has.
    - `withdrawal_layer`: K if the visual tokens were withdrawn, else None.

    Shares are from 0 to 1 and sum to 1 in each layer of each query; withdrawn, the image's share is exactly 0
    from layer K on. Raises ValueError otherwise.

    This is where attention sinks show, from which arXiv 2405.05803 starts, query by query.
    """

    segments: tuple[str, ...]
    last_prompt: tuple[Shares, ...]
    answer: tuple[tuple[Shares, ...], ...]
    visual_tokens: int
    withdrawal_layer: int | None = None

    def __post_init__(self) -> None:
        if Segment.IMAGE not in self.segments or len(set(self.segments)) != len(self.segments):
            raise ValueError(
                f"segments must be different names, {Segment.IMAGE.value!r} among them; these are {self.segments}."
            )
        if self.visual_tokens < 0:
            raise ValueError(f"visual_tokens can't be negative; this is {self.visual_tokens}.")
        if not self.last_prompt:
            raise ValueError("last_prompt has no layers.")
        if self.withdrawal_layer is not None and not 1 <= self.withdrawal_layer <= self.layers:
            raise ValueError(
                f"withdrawal_layer must be from 1 to {self.layers}, the number of layers; "
                f"this is {self.withdrawal_layer}."
            )
        self._check_query("last_prompt", self.last_prompt)
        for index, query in enumerate(self.answer):
            self._check_query(f"answer[{index}]", query)

    def _check_query(self, name: str, query: tuple[Shares, ...]) -> None:
        if len(query) != self.layers:
            raise ValueError(f"{name} has {len(query)} layers, last_prompt has {self.layers}.")
        image = self.segments.index(Segment.IMAGE)
        for layer, shares in enumerate(query):
            if len(shares) != len(self.segments):
                raise ValueError(
                    f"{name} has {len(shares)} shares in layer {layer}, for {len(self.segments)} segments."
                )
            # Rounding may push a share a little beyond the whole.
            if not all(0 <= share <= 1 + 1e-3 for share in shares) or abs(math.fsum(shares) - 1) > 1e-3:
                raise ValueError(
                    f"{name} has the shares {shares} in layer {layer}; they must be from 0 to 1 and sum to 1."
                )
            if self.withdrawal_layer is not None and layer >= self.withdrawal_layer and shares[image] != 0:
                raise ValueError(
                    f"{name} gives the image {shares[image]} in layer {layer}, though its tokens were "
                    f"withdrawn at layer {self.withdrawal_layer}."
                )

    @property
    def layers(self) -> int:
        """How many decoder layers there are."""
        return len(self.last_prompt)

    @property
    def answer_mean(self) -> tuple[Shares, ...]:
        """The mean over the answer tokens, (layers, segments); empty where no answer was given."""
        return tuple(
            tuple(math.fsum(share) / len(self.answer) for share in zip(*shares, strict=True))
            for shares in zip(*self.answer, strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data that `json.dumps` takes: the fields by name, and `answer_mean`."""
        return {**asdict(self), "answer_mean": self.answer_mean}


def measure_attention(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    answer_token_ids: Sequence[int] | torch.Tensor | None = None,
    layer: int | None = None,
) -> AttentionMass:
    """Measure the attention mass of the last prompt position and of each answer token's position.

    - `model`: a vision-language model that `withdraw` supports; it is left as it was.
    - `inputs`: what its processor made of one prompt: `input_ids`, int64, shape (1, prompt), and what goes
      with them (`attention_mask`, `pixel_values`, ...), on the model's device. May be padded on the left.
    - `answer_token_ids`: the answer's token ids, without the prompt's. Prompt and answer go through the model
      in a single forward pass, as if the model had generated them. None or empty measures the prompt alone.
    - `layer`: the withdrawal layer K; None measures without withdrawal.

    Row i of the answer is the position that holds answer token i, as the query that predicts token i + 1. The
    query that predicts answer token 0 is the last prompt position. A query attends to its own position too,
    which counts to the segment that it is in.

    Weights are computed in float32 whatever the model's precision. Passes in several threads take turns.

    Raises
    - ValueError for a batch of more than one prompt, a prompt padded on the right, answer token ids that
      aren't one sequence or contain a placeholder of an image, a prompt that ends with a visual token when
      these are withdrawn (its last position is withdrawn too), and a model whose attention isn't plain
      softmax of scaled products,
    - RuntimeError for a model whose attention doesn't run through transformers' attention interface,
    - what `withdraw` raises.
    """
    check_prompt(inputs)
    if len(inputs["input_ids"]) != 1:
        raise ValueError(
            "Attention mass is measured for one prompt at a time, input_ids of the shape (1, prompt); "
            f"these have {tuple(inputs['input_ids'].shape)}."
        )
    prompt_length = inputs["input_ids"].shape[1]
    prompt_and_answer = with_answer(model, inputs, answer_token_ids)
    input_ids, attention_mask = prompt_and_answer["input_ids"], prompt_and_answer.get("attention_mask")
    visual = visual_token_mask(model.config, input_ids)
    segments = segment_ids(model.config, input_ids, attention_mask, prompt_length)[0]
    layer_count = len(find_decoder(model).layers)
    kept = keep_positions(visual, attention_mask)
    kept_segments = segments if kept is None else segments[kept.index[0]]
    if layer not in (None, layer_count):
        check_prompt_end(model, inputs)

    mass_by_layer: dict[int, torch.Tensor] = {}

    def add_up(layer_index: int, weights: torch.Tensor) -> None:
        key_segments = segments if layer is None or layer_index < layer else kept_segments
        mass_by_layer[layer_index] = sum_by_segment(weights[0], key_segments)

    with (
        torch.no_grad(),
        captured_rows(model, input_ids.shape[1] - prompt_length + 1, add_up),
        nullcontext() if layer is None else withdraw(model, layer=layer),
    ):
        # Nothing is decoded after this pass: a cache and logits would only take memory.
        model(**prompt_and_answer, use_cache=False, logits_to_keep=1)
    missing = sorted(set(range(layer_count)) - set(mass_by_layer))
    if missing:
        raise RuntimeError(
            f"The attention of decoder layers {missing} of this {type(model).__name__} doesn't run through "
            "transformers' attention interface, so it can't be measured."
        )
    # (rows, layers, segments), brought from the device at once.
    mass = torch.stack([mass_by_layer[index] for index in range(layer_count)], dim=1).tolist()
    last_prompt, *answer = tuple(tuple(tuple(shares) for shares in row) for row in mass)
    return AttentionMass(
        segments=tuple(segment.value for segment in Segment),
        last_prompt=last_prompt,
        answer=tuple(answer),
        visual_tokens=int(visual.sum()),
        withdrawal_layer=layer,
    )


def sum_by_segment(weights: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """Attention weights, float32, shape (rows, keys), summed over the keys of each segment.

    `segments`, int64, shape (keys,), as `segment_ids` makes them. The result has the shape (rows, segments),
    in the order of `Segment`. Raises RuntimeError unless there is one segment for each key.
    """
    if weights.shape[-1] != segments.shape[0]:
        raise RuntimeError(
            f"A decoder layer attended to {weights.shape[-1]} positions where {segments.shape[0]} were "
            "expected, so it isn't known which of them are visual tokens."
        )
    # Padding goes to a column of its own, which is cut off.
    columns = torch.where(segments == PADDING, len(Segment), segments)
    sums = weights.new_zeros(weights.shape[0], len(Segment) + 1)
    return sums.scatter_add_(1, columns.expand_as(weights), weights)[:, :-1]


def attention_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    attention_mask: torch.Tensor | None,
    row_count: int,
    scaling: float | None = None,
    is_causal: bool = True,
) -> torch.Tensor:
    """The last `row_count` rows of the attention matrix, mean over heads: float32, (batch, rows, keys).

    - `query`, shape (batch, heads, queries, head_dim); `key`, shape (batch, key-value heads, keys, head_dim).
      Heads are a multiple of key-value heads: consecutive heads share one.
    - `attention_mask`, broadcastable to (batch, heads, queries, keys): bool (True: attend), float (added to
      the scores), or None.
    - `scaling`: factor of the scores; None means 1 / sqrt(head_dim).
    - `is_causal`: without a mask, whether query i attends to keys 0 to i only.
    """
    batch, heads, query_count, head_dim = query.shape
    _, key_value_heads, key_count, _ = key.shape
    if attention_mask is None and is_causal:
        columns = torch.arange(key_count, device=key.device)
        attention_mask = columns <= columns[:query_count, None]
    factor = head_dim**-0.5 if scaling is None else scaling
    transposed_key = key.float().transpose(2, 3)
    blocks = []
    for start in range(query_count - row_count, query_count, _ROWS_AT_ONCE):
        rows = slice(start, min(start + _ROWS_AT_ONCE, query_count))
        # Heads that share keys are stacked as rows, so that keys needn't be repeated.
        stacked = query[:, :, rows].float().reshape(batch, key_value_heads, -1, head_dim)
        scores = (stacked @ transposed_key).view(batch, heads, -1, key_count) * factor
        if attention_mask is not None:
            # A mask of one row serves all of them.
            mask = attention_mask[..., rows, :] if attention_mask.shape[-2] > 1 else attention_mask
            mask = mask[..., :key_count]
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        blocks.append(scores.softmax(dim=-1).mean(dim=1))
    return torch.cat(blocks, dim=1)


_ROWS_AT_ONCE = 64
"""Bounds the memory for a long answer: rows of all heads that are there at the same time."""

_INTERFACE = "vtw_demo_captured_rows"

_capture: ContextVar[Callable[..., None] | None] = ContextVar("capture", default=None)
"""What takes the queries and keys of the pass that runs now; passes in other threads aren't captured."""

_turn = threading.Lock()


@contextmanager
def captured_rows(
    model: PreTrainedModel, row_count: int, receive: Callable[[int, torch.Tensor], None]
) -> Iterator[None]:
    """Hand the last rows of each decoder layer's attention matrix to `receive`, inside a `with` block.

    In a forward pass of this thread, `receive(layer_index, weights)` is called once for each decoder layer,
    in order, with the weights of `attention_rows`: float32, shape (batch, rows, keys), mean over heads.
    Under `withdraw`, layers from K on have the kept positions as keys.

    Attention itself is computed by sdpa. The encoder of images isn't touched. Leaving the block, by an
    exception too, sets the decoder's attention implementation back. Blocks in several threads take turns.

    Forward passes raise ValueError for attention with soft caps, position biases or learned sinks.
    """

    def capture(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **options: Any,
    ) -> None:
        for name in ("softcap", "position_bias", "s_aux"):
            if options.get(name) is not None:
                raise ValueError(
                    f"{type(module).__name__} uses {name}; attention mass is known for plain softmax of "
                    "scaled products."
                )
        is_causal = options.get("is_causal")
        if is_causal is None:
            is_causal = getattr(module, "is_causal", True)
        weights = attention_rows(query, key, attention_mask, row_count, options.get("scaling"), is_causal)
        receive(module.layer_idx, weights)

    config = find_decoder(model).config
    with _turn:
        before = config._attn_implementation
        token = _capture.set(capture)
        config._attn_implementation = _INTERFACE
        try:
            yield
        finally:
            config._attn_implementation = before
            _capture.reset(token)


def _sdpa_with_capture(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    capture = _capture.get()
    if capture is not None:
        capture(module, query, key, attention_mask, **options)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


# Registered for good: a pass of another thread may look it up while a measurement ends.
AttentionInterface.register(_INTERFACE, _sdpa_with_capture)
AttentionMaskInterface.register(_INTERFACE, sdpa_mask)
