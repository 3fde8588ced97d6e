"""One query at every withdrawal layer, from a single sweep, as plain data: what a slider can show without a model."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch

from vtw_demo.measurements.flops import cache_left, flops_left
from vtw_demo.measurements.layer_sweep import sweep
from vtw_demo.models.loading import VisionLanguageModel
from vtw_demo.models.prompt import Prompt

LIKELIEST = 5


@dataclass(frozen=True)
class TokenProbability:
    """A token's text, as it stands in an answer, and its probability."""

    text: str
    probability: float


@dataclass(frozen=True)
class QuerySweep:
    """What withdrawal at K = 1 to L - 1 does to one query.

    - `kl`: the divergence of the token after the prompt, by K.
    - `full_tokens`: the likeliest tokens of the full model there, in order; `withdrawn_tokens`: those at each K.
    - `flops_left`, `cache_left`: shares of the prefill's FLOPs and of the KV cache, by K; None where
      costs aren't known.
    - `answer`: the tokens of the full model's answer.
    - `answer_kl`: (K, answer token), the divergence at each of them; `answer_choices`: what the model would have said
      there.
    """

    kl: tuple[float, ...]
    full_tokens: tuple[TokenProbability, ...]
    withdrawn_tokens: tuple[tuple[TokenProbability, ...], ...]
    flops_left: tuple[float, ...] | None
    cache_left: tuple[float, ...] | None
    answer: tuple[str, ...]
    answer_kl: tuple[tuple[float, ...], ...]
    answer_choices: tuple[tuple[str, ...], ...]

    @property
    def layers(self) -> tuple[int, ...]:
        """The withdrawal layers K."""
        return tuple(range(1, len(self.kl) + 1))

    @property
    def answer_mean_kl(self) -> tuple[float, ...]:
        """The mean over the answer's tokens, by K."""
        return tuple(map(fmean, self.answer_kl))

    @property
    def is_of_several_words(self) -> bool:
        return len("".join(self.answer).removesuffix("(end)").split()) > 1

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "layers": self.layers, "answer_mean_kl": self.answer_mean_kl}


def sweep_query(vlm: VisionLanguageModel, prompt: Prompt, answer_token_ids: Sequence[int]) -> QuerySweep:
    """Sweep one query with the full model's answer given."""
    size = prompt.length, prompt.visual_tokens
    swept = sweep(vlm.model, prompt.inputs, answer_token_ids)
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
