"""Information migration: in which layers what the picture holds moves into the text tokens that follow it.

The logit lens (nostalgebraist, "interpreting GPT: the logit lens", 2020) reads a hidden state as if the model ended
there: how likely the final answer is already. The cosine distance between a text token's states with the picture and
with a blank one says how far the picture has moved it. Where both have risen the text holds what it needs, which is why
deep layers can do without visual tokens (arXiv 2405.05803, section 3).
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cosine_similarity

from vtw_demo.errors import UserError
from vtw_demo.formats import PlainData
from vtw_demo.measurements.head import POSITIONS_AT_ONCE, Rest, logits_of, rest_of
from vtw_demo.models.devices import check_finite
from vtw_demo.models.loading import VisionLanguageModel
from vtw_demo.models.prompt import Prompt
from vtw_demo.models.video import like
from vtw_demo.withdrawal.architectures import find_decoder
from vtw_demo.withdrawal.layer_inputs import hidden_states_of
from vtw_demo.withdrawal.segments import visual_token_mask
from vtw_demo.withdrawal.teacher_forcing import check_prompt_end, with_answer
from vtw_demo.withdrawal.token_pruning import exclusive
from vtw_demo.withdrawal.withdraw import withdraw

BLANK = (128, 128, 128)
"""What a blank picture shows: mid grey, in the same size, so that its visual tokens stand at the same positions."""

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Migration(PlainData):
    """How far the picture's content has moved into the text after each decoder layer."""

    tokens: tuple[str, ...]  # the prompt's text after the first visual token
    distance: Rows  # (layers, tokens): cosine distance, 0 to 2, from the state with a blank picture in its place
    answer: tuple[str, ...]  # the full model's
    probability: Rows  # (layers, answer): of each token by the logit lens, read at the position before it
    withdrawn_probability: Rows  # the same, withdrawn
    withdrawal_layer: int

    @property
    def layers(self) -> int:
        return len(self.probability)


def measure_migration(
    vlm: VisionLanguageModel, prompt: Prompt, answer_token_ids: Sequence[int], layer: int
) -> Migration:
    """Measure one query with the full model's answer given, in three forward passes: with the picture, with the visual
    tokens withdrawn at `layer`, and with a blank picture.

    Text before the first visual token is left out: where attention is causal it can't see the picture. Hidden states
    are compared in float32; the lens is the model's own norm and head, its softmax in float32.
    """
    if not len(answer_token_ids):
        raise UserError("There is no answer to look for: hand the token ids of the full model's.")
    check_prompt_end(vlm.model, prompt.inputs)
    blank = vlm.prompt(like(prompt.shown, BLANK), prompt.question)
    given = answer_token_ids[:-1]  # the last token predicts nothing that is asked for
    seen, unseen = (with_answer(vlm.model, asked.encoded_inputs, given) for asked in (prompt, blank))
    ids = prompt.inputs["input_ids"][0]
    visual = visual_token_mask(vlm.model.config, ids)
    text = ((visual.cumsum(0) > 0) & ~visual).nonzero()[:, 0]
    if not len(text):
        raise UserError("Migration needs at least one token of text after a visual token; this prompt has none.")
    # Counted from the end, which is the same with the visual tokens withdrawn.
    of_text = text - len(ids) - len(given)
    of_answer = torch.arange(-len(answer_token_ids), 0, device=ids.device)
    withdrawn_states, rest = _states(vlm, seen, layer, of_answer)
    states, _ = _states(vlm, seen, vlm.layers, torch.cat([of_text, of_answer]))
    blank_states, _ = _states(vlm, unseen, vlm.layers, of_text)
    answer = torch.as_tensor(answer_token_ids, device=ids.device)
    text_token = int(ids[-1])
    return Migration(
        tokens=tuple(vlm.token_text(token) for token in ids[text].tolist()),
        distance=tuple(
            _distance(with_picture[..., : len(text), :], without)
            for with_picture, without in zip(states, blank_states, strict=True)
        ),
        answer=tuple(vlm.token_text(token) for token in answer.tolist()),
        probability=_lens(vlm, [state[..., len(text) :, :] for state in states], answer, text_token, rest),
        withdrawn_probability=_lens(vlm, withdrawn_states, answer, text_token, rest),
        withdrawal_layer=layer,
    )


def _states(
    vlm: VisionLanguageModel, inputs: Mapping[str, Any], layer: int, positions: torch.Tensor
) -> tuple[list[torch.Tensor], Rest]:
    """Hidden states after each decoder layer, each of shape (..., positions, hidden), withdrawn at `layer`, and the
    rest of what layers hand on; `positions` are negative, counted from the end of the sequence."""
    states: list[torch.Tensor] = []
    rest: list[Rest] = []

    def keep(module: torch.nn.Module, args: tuple, output: Any) -> None:
        # Layers from K on hand out the kept positions only; text and answer stand at the end of both.
        states.append(hidden_states_of(output)[..., 0, positions, :])
        rest.append(rest_of(output))

    # At K = L nothing is withdrawn, and other withdrawals are kept off the model.
    with torch.no_grad(), withdraw(vlm.model, layer, this_thread_only=True), ExitStack() as hooks:
        for decoder_layer in find_decoder(vlm.model).layers:
            hooks.callback(decoder_layer.register_forward_hook(keep).remove)
        # One position's logits, as none are read here. Handed as a number, they would make gemma4 and `withdraw` cut
        # the last layers' sequence to it; as a tensor they don't.
        check_finite(vlm.model(**inputs, use_cache=False, logits_to_keep=positions[-1:]).logits)
    return states, rest[0]


def _distance(states: torch.Tensor, others: torch.Tensor) -> tuple[float, ...]:
    """The cosine distance at each position of two states of shape (..., positions, hidden)."""
    # gemma3n has several streams, of which its layers compute on the first.
    first, second = ((state[0] if state.ndim == 3 else state).float() for state in (states, others))
    return tuple((1 - cosine_similarity(first, second, dim=-1)).clamp(0, 2).tolist())


def _lens(
    vlm: VisionLanguageModel, states: Sequence[torch.Tensor], answer: torch.Tensor, text_token: int, rest: Rest
) -> Rows:
    """The probability of each of the answer's tokens after each layer, from the states at the positions before it."""
    positions, wanted = torch.cat(tuple(states), dim=-2), answer.repeat(len(states))
    parts = zip(positions.split(POSITIONS_AT_ONCE, dim=-2), wanted.split(POSITIONS_AT_ONCE), strict=True)
    read = []
    with torch.no_grad(), exclusive(vlm.model):
        for part, tokens in parts:
            log = logits_of(vlm.model, part, text_token, rest).log_softmax(-1, dtype=torch.float32)
            read.append(log.gather(-1, tokens[:, None])[:, 0].exp())
    return tuple(map(tuple, torch.cat(read).view(len(states), -1).tolist()))
