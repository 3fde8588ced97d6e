"""Every withdrawal layer in one forward pass: how far withdrawal at each moves the next token's distribution."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import kl_div
from transformers import PreTrainedModel

from vtw_demo.errors import UserError
from vtw_demo.measurements.head import POSITIONS_AT_ONCE, logits_of
from vtw_demo.measurements.sweep_streams import SweepStreams
from vtw_demo.withdrawal.architectures import find_decoder, find_model
from vtw_demo.withdrawal.teacher_forcing import check_prompt_end, with_answer
from vtw_demo.withdrawal.token_pruning import exclusive
from vtw_demo.withdrawal.withdraw import whole_number


@dataclass(frozen=True, eq=False)
class Sweep:
    """What withdrawal at each layer does to the next token, for a batch of prompts."""

    layers: tuple[int, ...]  # the withdrawal layers K, 1 to L - 1
    # float32, shape (batch, K): `KL(P_withdrawn || P_full)` of the next token after the prompt, natural logarithm
    # (arXiv 2405.05803, section 4.3; as in the authors' code).
    kl: torch.Tensor
    logits: torch.Tensor  # of that token, withdrawn at each K: float32, shape (batch, K, vocabulary)
    full_logits: torch.Tensor  # by the full model: float32, shape (batch, vocabulary)
    # At every token of the answer, all tokens before it given; None where no answer was given. The divergence, float32,
    # shape (batch, K, answer), whose first column is `kl`; and the likeliest token, withdrawn at each K, int64.
    answer_kl: torch.Tensor | None = None
    answer_choices: torch.Tensor | None = None


def sweep(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    answer_token_ids: Sequence[int] | torch.Tensor | None = None,
    positions_at_once: int | None = None,
) -> Sweep:
    """The divergence of the next token for every withdrawal layer, from a single forward pass.

    - `model`: a vision-language model that `withdraw` supports; it is left as it was.
    - `inputs`: what its processor made of the prompts: `input_ids`, int64, shape (batch, prompt), and what goes
      with them, on the model's device. May be padded on the left.
    - `answer_token_ids`: answers, shape (batch, answer) or, for a batch of one, (answer,): with them, the divergence
      at each of their tokens too, teacher-forced.
    - `positions_at_once`: streams run through a layer in chunks of so many positions, at least a stream each; None
      takes as many as the full sequence has, so that no layer needs more memory than in a prefill. The result
      is the same.

    Raises ValueError for prompts that are padded on the right or end with a visual token and for answers that don't
    fit; RuntimeError while a withdrawal is active on this model; what `withdraw` raises.
    """
    pruned = find_model(model)
    if positions_at_once is not None and whole_number(positions_at_once, "positions_at_once") < 1:
        raise UserError(f"positions_at_once must be at least 1; this is {positions_at_once}.")
    answer = None if answer_token_ids is None else torch.as_tensor(answer_token_ids)
    answer_length = None if answer is None else answer.shape[-1]
    # The answer's last token predicts nothing that is asked for.
    whole = with_answer(model, inputs, None if answer is None else answer[..., :-1])
    check_prompt_end(model, inputs)
    if len(find_decoder(model).layers) == 1:
        raise UserError(f"{type(model).__name__} has 1 decoder layer: there is no K to sweep.")
    with torch.no_grad():
        with SweepStreams(pruned, max(1, answer_length or 0), positions_at_once) as streams:
            # No decoding follows: a cache and further logits would only take memory.
            model(**whole, use_cache=False, logits_to_keep=1)
        with exclusive(pruned):
            return _read(streams, int(whole["input_ids"][0, -1]), answer_length)


def _read(streams: SweepStreams, text_token: int, answer_length: int | None) -> Sweep:
    """What the streams came to, for an answer of so many tokens; None for none."""
    assert streams.full is not None
    batch, positions = streams.full.shape[-3:-1]

    def logits_of_rows(hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., rows, positions, hidden) -> (rows / batch, batch, positions, vocabulary)"""
        logits = logits_of(streams.model, hidden_states.flatten(-3, -2), text_token, streams.rest)
        return logits.view(-1, batch, positions, logits.shape[-1]).float()

    full_logits = logits_of_rows(streams.full)
    full_log = full_logits.log_softmax(-1)
    layers = tuple(range(1, len(streams.layers)))
    next_logits, divergences, choices = [], [], []
    at_once = max(1, POSITIONS_AT_ONCE // (batch * positions))
    for first in range(0, len(layers), at_once):
        count = len(layers[first : first + at_once])
        if streams.hidden is None:
            logits = full_logits.expand(count, -1, -1, -1)
        else:
            rows = slice(first * batch, (first + count) * batch)
            logits = logits_of_rows(streams.hidden[..., rows, -positions:, :])
        withdrawn_log = logits.log_softmax(-1)
        divergence = kl_div(full_log.expand_as(withdrawn_log), withdrawn_log, reduction="none", log_target=True)
        divergences.append(divergence.sum(-1).clamp_min(0))  # rounding may go below
        choices.append(logits.argmax(-1))
        next_logits.append(logits[:, :, 0])
    # (streams, batch, positions) -> (batch, streams, positions)
    answer_kl, answer_choices = (torch.cat(parts).transpose(0, 1) for parts in (divergences, choices))
    return Sweep(
        layers=layers,
        kl=answer_kl[..., 0],
        logits=torch.cat(next_logits).transpose(0, 1),
        full_logits=full_logits[0, :, 0],
        answer_kl=None if answer_length is None else answer_kl[..., :answer_length],
        answer_choices=None if answer_length is None else answer_choices[..., :answer_length],
    )


def choose_layer(
    layers: Sequence[int], kl: torch.Tensor | Sequence[Sequence[float]], threshold: float = 0.003
) -> int | None:
    """The first of `layers` whose mean divergence over the samples is at most `threshold`; None if there is none.

    `kl`, shape (samples, layers) or (layers,), as `Sweep` has it. The authors' thresholds are 0.003 for LLaVA-1.5-7B,
    0.0005 for LLaVA-1.5-13B and 0.0001 for LLaVA-NeXT-Vicuna-7B (arXiv 2405.05803; their code scans layers
    from 5 on, which is for the caller to choose).

    Raises ValueError for shapes that don't fit and for a threshold that isn't a number from 0 on.
    """
    divergence = torch.as_tensor(kl, dtype=torch.float32)
    samples = divergence[None] if divergence.ndim == 1 else divergence
    if samples.ndim != 2 or samples.shape[1] != len(layers) or samples.numel() == 0:
        raise UserError(f"kl has the shape {tuple(divergence.shape)}, for {len(layers)} layers.")
    if not (math.isfinite(threshold) and threshold >= 0):
        raise UserError(f"The threshold must be a number from 0 on; this is {threshold!r}.")
    # Compared in float32: 0.003 of a tensor is a little more than 0.003.
    met = (samples.mean(0) <= torch.tensor(threshold)).tolist()
    return next((layer for layer, is_met in zip(layers, met, strict=True) if is_met), None)
