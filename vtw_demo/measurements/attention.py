"""Attention mass and attention maps: how much of its attention a position gives to each segment of the sequence, and to
each visual token, by layer; and how much of what attention adds to it comes from there."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from vtw_demo.errors import UserError
from vtw_demo.measurements.sinks import Sinks, watched_sinks
from vtw_demo.models.devices import check_finite
from vtw_demo.withdrawal.architectures import find_attention, find_decoder, find_model
from vtw_demo.withdrawal.attention_capture import captured_rows, output_cosine
from vtw_demo.withdrawal.prune import pruned_by
from vtw_demo.withdrawal.segments import PADDING, Segment, segment_ids, visual_token_mask
from vtw_demo.withdrawal.teacher_forcing import check_prompt, check_prompt_end, with_answer
from vtw_demo.withdrawal.withdraw import check_layer, whole_number

Shares = tuple[float, ...]
"""The share of attention that each segment gets, in the order of `AttentionMass.segments`."""


@dataclass(frozen=True)
class AttentionMass:
    """The share of attention, mean over heads, that query positions give to each segment, by layer. They sum to 1;
    None is a layer that doesn't attend: a recurrent one, a convolution or an MLP alone.

    Attention isn't use: a key that gets much may have a value of next to no length. So beside it stands each segment's
    share of the contribution: in each head the weight times the L2 norm of the key's value vector in that head, mean
    over heads, divided by its sum over all keys (CAPA, arXiv 2602.00247, ranks tokens by it, without the division).
    Lengths don't say whether values point the same way or cancel; `cosine` does, of all visual tokens together: see
    `vtw_demo.withdrawal.attention_capture.output_cosine`.
    """

    segments: tuple[str, ...]  # in the order of every tuple of shares
    last_prompt: tuple[Shares | None, ...]  # (layers, segments), of the query that predicts answer token 0
    answer: tuple[tuple[Shares | None, ...], ...]  # (answer tokens, layers, segments); query i predicts token i + 1
    visual_tokens: int  # of the prompt
    withdrawal_layer: int | None = None  # K if they were withdrawn: the image's share is exactly 0 from there on
    # (queries, layers, segments), of the last prompt position and then of the answer tokens
    contribution: tuple[tuple[Shares | None, ...], ...] = ()
    # (queries, layers): between attention's output with and without the visual tokens
    cosine: tuple[tuple[float | None, ...], ...] = ()
    sinks: Sinks | None = None  # of the full run; what is withdrawn at K changes none before K
    recipe: str | None = None  # of `prune`, if tokens left by one

    @property
    def layers(self) -> int:
        return len(self.last_prompt)

    @property
    def layers_without_attention(self) -> int:
        return self.last_prompt.count(None)

    @property
    def answer_mean(self) -> tuple[Shares | None, ...]:
        """The mean over the answer tokens, (layers, segments); empty where no answer was given."""
        return mean_shares(self.answer)

    def to_json(self) -> dict[str, Any]:
        """Plain data that `json.dumps` takes: the fields by name, and `answer_mean`."""
        return {**asdict(self), "answer_mean": self.answer_mean}

    def without_answer(self) -> "AttentionMass":
        """What is kept of it for long: attention, of the last prompt position."""
        return replace(self, answer=(), contribution=(), cosine=(), sinks=None)


def mean_shares(queries: Sequence[tuple[Shares | None, ...]]) -> tuple[Shares | None, ...]:
    """The mean over queries, each (layers, segments)."""
    by_layer = zip(*queries, strict=True)
    return tuple(None if rows[0] is None else tuple(map(fmean, zip(*rows, strict=True))) for rows in by_layer)


def measure_attention(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    answer_token_ids: Sequence[int] | torch.Tensor | None = None,
    layer: int | None = None,
    recipe: str | None = None,
) -> AttentionMass:
    """Measure the attention mass of the last prompt position and of each answer token's position.

    - `model`: a vision-language model that `withdraw` supports; it is left as it was.
    - `inputs`: what its processor made of one prompt: `input_ids`, int64, shape (1, prompt), and what goes with them
      (`attention_mask`, `pixel_values`, ...), on the model's device. May be padded on the left.
    - `answer_token_ids`: without the prompt's. Prompt and answer go through the model in a single forward pass, as if
      the model had generated them. None or empty measures the prompt alone.
    - `layer`: the withdrawal layer K; None measures without withdrawal.
    - `recipe`: of `prune`, by which tokens leave as if the prompt were all that the pass holds; in place of `layer`.

    A query attends to its own position too, which counts to the segment that it is in. Weights are computed in float32
    whatever the model's precision. Passes in several threads take turns.

    Raises ValueError for more than one prompt, one padded on the right, one that ends with a visual token when these
    are withdrawn, `layer` and `recipe` at once, answers that aren't one sequence or contain a placeholder, and
    attention that isn't plain softmax of scaled products; RuntimeError where attention doesn't run through
    transformers' attention interface; what `withdraw` and `prune` raise.
    """
    whole, prompt = _with_answer(model, inputs, answer_token_ids, layer, recipe), inputs["input_ids"].shape[1]
    segments = segment_ids(model.config, whole["input_ids"], whole.get("attention_mask"), prompt)[0]
    by = layer if recipe is None else recipe
    answer_length = whole["input_ids"].shape[1] - prompt
    sums = _sum_attention(model, whole, by, segments, len(Segment), answer_length, answer_length + 1)
    attention, contribution = (
        tuple(tuple(None if math.isnan(shares[0]) else tuple(shares) for shares in row) for row in rows)
        for rows in sums.shares.tolist()
    )
    last_prompt, *of_answer = attention
    return AttentionMass(
        segments=tuple(segment.value for segment in Segment),
        last_prompt=last_prompt,
        answer=tuple(of_answer),
        visual_tokens=int((segments == Segment.IMAGE.number).sum()),
        withdrawal_layer=layer,
        recipe=recipe,
        contribution=contribution,
        cosine=tuple(tuple(None if math.isnan(one) else one for one in row) for row in sums.cosine.tolist()),
        sinks=sums.sinks,
    )


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """The share of its attention, mean over heads, that one query position gives to each visual token: float32, shape
    (layers, visual tokens), a read-only array, 0 from the withdrawal layer on, NaN where a layer doesn't attend.

    `contribution` is of the same shape: each visual token's share of the contributions of all keys, the text's too, as
    `AttentionMass` has it."""

    weights: np.ndarray
    answer_token: int | None  # whose position is the query, counted from 0; None: the last prompt position
    withdrawal_layer: int | None  # K if the visual tokens were withdrawn
    contribution: np.ndarray
    sinks: Sinks | None = None  # of the full run
    recipe: str | None = None  # of `prune`, if tokens left by one

    @property
    def layers(self) -> int:
        return int(self.weights.shape[0])

    @property
    def layers_without_attention(self) -> int:
        return int(np.isnan(self.weights[:, 0]).sum())

    def to_json(self) -> dict[str, Any]:
        number = None if self.answer_token is None else self.answer_token + 1
        weights, contribution = (
            [None if math.isnan(row[0]) else row for row in of.tolist()] for of in (self.weights, self.contribution)
        )
        sinks = self.sinks and asdict(self.sinks)
        listed = {"answer_token": number, "weights": weights, "contribution": contribution, "sinks": sinks}
        return {**vars(self), **listed}


def measure_attention_map(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    answer_token_ids: Sequence[int] | torch.Tensor | None = None,
    answer_token: int | None = None,
    layer: int | None = None,
    recipe: str | None = None,
) -> AttentionMap:
    """Measure how much attention one position gives to each visual token.

    - `model`, `inputs`, `answer_token_ids`, `layer` and `recipe` as in `vtw_demo.measure_attention`.
    - `answer_token`: the token of the answer whose position is the query, counted from 0; it predicts the token after
      it. None: the last prompt position, which predicts answer token 0.
    """
    answer = torch.as_tensor([] if answer_token_ids is None else answer_token_ids)
    given = answer.shape[-1]
    if answer_token is not None and not 0 <= whole_number(answer_token, "answer_token") < given:
        raise UserError(f"The answer has {given} tokens, counted from 0; there is no token {answer_token}.")
    to_query = answer[..., : 0 if answer_token is None else answer_token + 1]
    whole = _with_answer(model, inputs, to_query, layer, recipe)
    visual = visual_token_mask(model.config, whole["input_ids"])[0]
    if not visual.any():
        raise UserError("The prompt has no visual tokens: there is nothing to map.")
    numbers = torch.where(visual, visual.cumsum(0) - 1, PADDING)
    by = layer if recipe is None else recipe
    sums = _sum_attention(model, whole, by, numbers, int(visual.sum()), to_query.shape[-1], 1)
    shares = sums.shares[:, 0].cpu().numpy()
    shares.setflags(write=False)
    token = None if answer_token is None else int(answer_token)
    return AttentionMap(shares[0], token, layer, shares[1], sums.sinks, recipe)


def _with_answer(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    answer_token_ids: Sequence[int] | torch.Tensor | None,
    layer: int | None,
    recipe: str | None,
) -> dict[str, Any]:
    """The model's inputs for prompt and answer, if their attention can be measured."""
    find_model(model)
    check_prompt(inputs)
    if layer is not None and recipe is not None:
        raise UserError(f"Tokens leave at a layer or by a recipe; this is layer {layer} and recipe {recipe!r}.")
    if len(inputs["input_ids"]) != 1:
        raise UserError(
            "Attention is measured for one prompt at a time, input_ids of the shape (1, prompt); "
            f"these have {tuple(inputs['input_ids'].shape)}."
        )
    whole = with_answer(model, inputs, answer_token_ids)
    layers = len(find_decoder(model).layers)
    if recipe is not None or (layer is not None and check_layer(layer, layers) < layers):
        check_prompt_end(model, inputs)
    return whole


@dataclass(frozen=True)
class _Sums:
    shares: torch.Tensor  # (2, rows, layers, labels): of attention, and of contributions
    cosine: torch.Tensor  # (rows, layers)
    sinks: Sinks | None  # of the full run


def _sum_attention(
    model: PreTrainedModel,
    whole: dict[str, Any],
    by: int | str | None,
    labels: torch.Tensor,
    count: int,
    answer_length: int,
    rows: int,
) -> _Sums:
    """What the last `rows` positions of prompt and answer, `whole`, take from the positions of each of `count` labels,
    in one forward pass: float32, on the model's device; NaN for layers that don't attend.

    `labels`, int64, shape (sequence,): each position's, from 0 on; `PADDING` isn't counted. `by`: as in `pruned_by`;
    None where nothing leaves.
    """
    layers, visual = find_decoder(model).layers, visual_token_mask(model.config, whole["input_ids"])
    sums: dict[int, list[torch.Tensor]] = {}
    cosines: dict[int, list[torch.Tensor]] = {}

    def add_up(layer_index: int, weights: torch.Tensor, value: torch.Tensor) -> None:
        # A layer from K on may use the keys of one below, in which visual ones are masked.
        is_whole = weights.shape[-1] == len(labels)
        held = None if pruning is None or is_whole else pruning.held(layer_index)
        of_keys, is_visual = (labels, visual) if held is None else (labels[held[0]], visual[:, held[0]])
        if weights.shape[-1] != len(of_keys):
            raise RuntimeError(
                f"A decoder layer attended to {weights.shape[-1]} positions where {len(of_keys)} were "
                "expected, so it isn't known which of them are visual tokens."
            )
        per_key = torch.stack([weights[0].mean(0), _contribution(weights, value)[0]])
        # What isn't counted goes to a group of its own, which is cut off.
        groups = torch.where(of_keys == PADDING, count, of_keys).expand_as(per_key)
        added = per_key.new_zeros(*per_key.shape[:2], count + 1).scatter_add_(2, groups, per_key)[..., :-1]
        sums.setdefault(layer_index, []).append(added)
        cosines.setdefault(layer_index, []).append(output_cosine(weights, value, is_visual)[0])

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        sinks, pruning = [], None
        if by is None:
            mask = whole.get("attention_mask")
            first = 0 if mask is None else int(mask[0].argmax())
            sinks = stack.enter_context(watched_sinks(model, first, visual[0].nonzero()[:, 0]))
        stack.enter_context(captured_rows(model, rows, add_up))
        if by is not None:
            pruning = stack.enter_context(pruned_by(model, by, answer_length))
        # Nothing is decoded after this pass: a cache and further logits would only take memory. A number would make
        # gemma4 cut the sequence of its last layers.
        last = torch.tensor([-1], device=labels.device)
        check_finite(model(**whole, use_cache=False, logits_to_keep=last).logits)
    for index, module in enumerate(layers):
        if find_attention(module) is None:
            (some, *_), (cosine, *_) = next(iter(sums.values())), next(iter(cosines.values()))
            sums[index] = [some.new_full((2, rows, count), torch.nan)]
            cosines[index] = [cosine.new_full((rows,), torch.nan)]
    if missing := sorted(set(range(len(layers))) - set(sums)):
        raise RuntimeError(
            f"The attention of decoder layers {missing} of this {type(model).__name__} doesn't run through "
            "transformers' attention interface, so it can't be measured."
        )
    in_order = range(len(layers))
    return _Sums(
        torch.stack([torch.cat(sums[index], dim=1) for index in in_order], dim=2),
        torch.stack([torch.cat(cosines[index]) for index in in_order], dim=1),
        next(iter(sinks), None),
    )


def _contribution(weights: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Each key's share of the contributions, (batch, rows, keys), of weights, (batch, heads, rows, keys), and values,
    (batch, key-value heads, keys, width), of which consecutive heads share one."""
    norms = torch.linalg.vector_norm(value, dim=-1, dtype=torch.float32)
    of_heads = norms.repeat_interleave(weights.shape[1] // norms.shape[1], dim=1)
    contributed = torch.einsum("bhrk,bhk->brk", weights, of_heads)
    return contributed / contributed.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
