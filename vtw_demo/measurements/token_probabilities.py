"""How probable each token of both answers is, with every layer seeing the picture and with visual tokens withdrawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch

from vtw_demo.errors import UserError
from vtw_demo.formats import PlainData
from vtw_demo.models.devices import check_finite
from vtw_demo.models.loading import VisionLanguageModel
from vtw_demo.models.prompt import Prompt
from vtw_demo.withdrawal.teacher_forcing import check_prompt_end, with_answer
from vtw_demo.withdrawal.withdraw import withdraw


@dataclass(frozen=True)
class AnswerToken:
    """A token of an answer and its probability in either run, all tokens before it in this answer given."""

    token_id: int  # two may have the same text, where each is a part of one character
    text: str  # its leading space included
    full: float
    withdrawn: float


@dataclass(frozen=True)
class AnswerProbabilities(PlainData):
    layer: int
    full: tuple[AnswerToken, ...]
    withdrawn: tuple[AnswerToken, ...]

    @property
    def first_difference(self) -> int | None:
        """The first token that differs, counted from 1; None where the answers are the same."""
        return first_difference(*([token.token_id for token in answer] for answer in (self.full, self.withdrawn)))


def first_difference(first: Sequence[Any], second: Sequence[Any]) -> int | None:
    """Where two sequences of tokens or words part, counted from 1: after the shorter one's end, if that is the
    beginning of the other; None where they are the same."""
    pairs = enumerate(zip_longest(first, second), start=1)
    return next((number for number, (one, other) in pairs if one != other), None)


def measure_answer_probabilities(
    vlm: VisionLanguageModel, prompt: Prompt, full_tokens: Sequence[int], withdrawn_tokens: Sequence[int], layer: int
) -> AnswerProbabilities:
    """The probabilities of both runs' answers, under the full model and with the visual tokens withdrawn at `layer`.

    They are softmax of the logits in float32, teacher-forced. Generation forbids placeholders of visual tokens, so it
    chooses from these probabilities without theirs, which are next to nothing.
    """
    if not full_tokens or not withdrawn_tokens:
        raise UserError("An answer has at least one token; one of these has none.")
    if layer != vlm.layers:
        check_prompt_end(vlm.model, prompt.inputs)
    full = _answer(vlm, prompt.encoded_inputs, full_tokens, layer)
    same = list(full_tokens) == list(withdrawn_tokens)
    return AnswerProbabilities(
        layer, full, full if same else _answer(vlm, prompt.encoded_inputs, withdrawn_tokens, layer)
    )


def _answer(
    vlm: VisionLanguageModel, inputs: Mapping[str, torch.Tensor], tokens: Sequence[int], layer: int
) -> tuple[AnswerToken, ...]:
    # At K = L nothing is withdrawn, and other withdrawals are kept off the model.
    full, withdrawn = (_probabilities(vlm, inputs, tokens, k) for k in (vlm.layers, layer))
    return tuple(
        AnswerToken(token, vlm.token_text(token), *pair) for token, *pair in zip(tokens, full, withdrawn, strict=True)
    )


def _probabilities(
    vlm: VisionLanguageModel, inputs: Mapping[str, torch.Tensor], tokens: Sequence[int], layer: int
) -> list[float]:
    # The answer's last token predicts nothing that is asked for.
    given = with_answer(vlm.model, inputs, tokens[:-1])
    with torch.no_grad(), withdraw(vlm.model, layer, this_thread_only=True):
        found = vlm.model(**given, use_cache=False, logits_to_keep=len(tokens)).logits[0, -len(tokens) :]
        wanted = torch.tensor(tokens, device=found.device)[:, None]
        return check_finite(found).log_softmax(-1, dtype=torch.float32).gather(-1, wanted).exp().flatten().tolist()
