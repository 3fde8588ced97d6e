"""How probable each token of both answers is, with every layer seeing the picture and with visual tokens withdrawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from vtw_demo.errors import UserError
from vtw_demo.models.loading import VisionLanguageModel
from vtw_demo.models.prompt import Prompt
from vtw_demo.withdrawal.teacher_forcing import check_prompt_end, with_answer
from vtw_demo.withdrawal.withdraw import withdraw


@dataclass(frozen=True)
class AnswerToken:
    """A token of an answer and its probability, all tokens before it in this answer given.

    - `token_id`: two tokens may have the same text, where each is a part of one character.
    - `text`: as it stands in the answer, its leading space included.
    - `full`, `withdrawn`: the probability where every layer sees the picture, and withdrawn.

    Raises ValueError for a probability that isn't from 0 to 1.
    """

    token_id: int
    text: str
    full: float
    withdrawn: float

    def __post_init__(self) -> None:
        for probability in (self.full, self.withdrawn):
            # Rounding may push it a little beyond.
            if not 0 <= probability <= 1 + 1e-4:
                raise ValueError(f"A probability is from 0 to 1; this is {probability}.")


@dataclass(frozen=True)
class AnswerProbabilities:
    """The answers of the full run and of the one withdrawn at `layer` (K), token by token.

    Raises ValueError for a withdrawal layer below 1 and for an answer without a token.
    """

    layer: int
    full: tuple[AnswerToken, ...]
    withdrawn: tuple[AnswerToken, ...]

    def __post_init__(self) -> None:
        if self.layer < 1:
            raise ValueError(f"The withdrawal layer must be at least 1; this is {self.layer}.")
        if not self.full or not self.withdrawn:
            raise ValueError("An answer has at least one token; one of these has none.")

    @property
    def first_difference(self) -> int | None:
        """The first token that differs, counted from 0; None where the answers are the same.

        Where one answer is the beginning of the other, it is the token after it.
        """
        full, withdrawn = ([token.token_id for token in answer] for answer in (self.full, self.withdrawn))
        if full == withdrawn:
            return None
        pairs = zip(full, withdrawn, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(full), len(withdrawn)))

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {**asdict(self), "first_difference": self.first_difference}


def measure_answer_probabilities(
    vlm: VisionLanguageModel,
    prompt: Prompt,
    full_tokens: Sequence[int],
    withdrawn_tokens: Sequence[int],
    layer: int,
) -> AnswerProbabilities:
    """The probabilities of both runs' answers, under the full model and with the visual tokens withdrawn at `layer`.

    Each answer goes through the model in a single forward pass of either kind, as if it had been generated: four
    passes, and two where the answers are the same. Probabilities are the model's own, softmax of its logits in
    float32. Generation forbids placeholders of visual tokens (`VisionLanguageModel.generate`), so that it chooses
    from these probabilities without theirs, which are next to nothing.

    Raises ValueError for an answer without a token, a prompt that ends with a visual token, and what `with_answer`
    and `withdraw` raise.
    """
    if not full_tokens or not withdrawn_tokens:
        raise UserError("An answer has at least one token; one of these has none.")
    if layer != vlm.layers:
        check_prompt_end(vlm.model, prompt.inputs)
    full = _answer(vlm, prompt.inputs, full_tokens, layer)
    same = list(full_tokens) == list(withdrawn_tokens)
    return AnswerProbabilities(layer, full, full if same else _answer(vlm, prompt.inputs, withdrawn_tokens, layer))


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
    with torch.no_grad(), withdraw(vlm.model, layer):
        logits = vlm.model(**given, use_cache=False, logits_to_keep=len(tokens)).logits[0, -len(tokens) :]
        wanted = torch.tensor(tokens, device=logits.device)[:, None]
        return logits.log_softmax(-1, dtype=torch.float32).gather(-1, wanted).exp().flatten().tolist()
