"""One query at every withdrawal layer, from a single sweep, as plain data: what a slider can show without a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from vtw_demo.formats import PlainData
from vtw_demo.measurements.flops import cache_left, flops_left
from vtw_demo.measurements.layer_sweep import sweep
from vtw_demo.models.loading import VisionLanguageModel
from vtw_demo.models.prompt import Prompt

LIKELIEST = 5


@dataclass(frozen=True)
class TokenProbability:
    text: str
    probability: float


@dataclass(frozen=True)
class QuerySweep(PlainData):
    """What withdrawal at K = 1 to L - 1 does to one query."""

    kl: tuple[float, ...]  # by K: the divergence of the token after the prompt
    full_tokens: tuple[TokenProbability, ...]  # the likeliest of the full model there, in order
    withdrawn_tokens: tuple[tuple[TokenProbability, ...], ...]  # those at each K
    flops_left: tuple[float, ...] | None  # shares of the prefill's FLOPs, by K, if costs are known
    cache_left: tuple[float, ...] | None
    answer: tuple[str, ...]  # the full model's
    answer_kl: tuple[tuple[float, ...], ...]  # (K, token of the answer)
    answer_choices: tuple[tuple[str, ...], ...]  # what the model would have said there

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(range(1, len(self.kl) + 1))

    @property
    def answer_mean_kl(self) -> tuple[float, ...]:
        return tuple(map(fmean, self.answer_kl))

    @property
    def is_of_several_words(self) -> bool:
        return len("".join(self.answer).removesuffix("(end)").split()) > 1


def sweep_query(vlm: VisionLanguageModel, prompt: Prompt, answer_token_ids: Sequence[int]) -> QuerySweep:
    size = prompt.length, prompt.visual_tokens
    swept = sweep(vlm.model, prompt.encoded_inputs, answer_token_ids)
    assert swept.answer_kl is not None
    assert swept.answer_choices is not None
    return QuerySweep(
        kl=tuple(swept.kl[0].tolist()),
        full_tokens=_likeliest(vlm, swept.full_logits[0]),
        withdrawn_tokens=tuple(_likeliest(vlm, logits) for logits in swept.logits[0]),
        flops_left=flops_left(vlm.model.config, *size),
        cache_left=cache_left(vlm.model.config, *size),
        answer=tuple(vlm.token_text(token) for token in answer_token_ids),
        answer_kl=tuple(map(tuple, swept.answer_kl[0].tolist())),
        answer_choices=tuple(tuple(map(vlm.token_text, row)) for row in swept.answer_choices[0].tolist()),
    )


def _likeliest(vlm: VisionLanguageModel, logits: torch.Tensor) -> tuple[TokenProbability, ...]:
    probabilities, tokens = logits.softmax(-1).topk(min(LIKELIEST, logits.shape[-1]))
    pairs = zip(tokens.tolist(), probabilities.tolist(), strict=True)
    return tuple(TokenProbability(vlm.token_text(token), probability) for token, probability in pairs)
