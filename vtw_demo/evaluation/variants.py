"""The variants of a model that an evaluation compares: the full model, withdrawal at each K, and other ways."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

from transformers import PreTrainedConfig, PreTrainedModel

from vtw_demo.errors import UserError
from vtw_demo.measurements.equal_flops import RIVALS, Rival, equal_schedule
from vtw_demo.measurements.flops import prefill_flops
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.withdrawal.automatic_layer import check_automatic
from vtw_demo.withdrawal.baselines import blind, check_renumbered, withdraw_renumbered
from vtw_demo.withdrawal.prune import KINDS
from vtw_demo.withdrawal.random_tokens import RandomTokens
from vtw_demo.withdrawal.steps import Step, pruned
from vtw_demo.withdrawal.withdraw import withdraw

PerQuestion = Literal["auto", "own"]
"""Withdrawal at a K that each question has for itself."""
Way = Literal["renumbered", "blind"] | Rival | PerQuestion
WAYS: tuple[Way, ...] = ("renumbered", "blind", *RIVALS, *get_args(PerQuestion))


@dataclass(frozen=True)
class PromptSize:
    """How many tokens a prompt has, padding not counted, and how many of them are visual."""

    tokens: int
    visual: int


@dataclass(frozen=True)
class Variant:
    """One way to answer: the model as it is, or with a method that takes tokens out.

    - `kind`: "full"; "withdrawn", the visual tokens leave before decoder layer K, `layer`; or another way:
      "renumbered", the visual tokens leave and the others close ranks; "blind", no layer sees the picture; one of
      `RIVALS`, another method whose prefill takes as many FLOPs; "auto", each prefill chooses K, with `threshold`;
      "own", K is the first that keeps the question's next token, by a sweep (`choose_layer`).
    """

    kind: Literal["full", "withdrawn"] | Way
    layer: int | None = None
    threshold: float | None = None

    @property
    def name(self) -> str:
        """As it stands in tables and files."""
        if self.kind == "auto":
            return f"auto, above {self.threshold}"
        said = {"full": "full", "blind": "blind (K = 0)", "withdrawn": f"K = {self.layer}", "own": "own K"}
        return said.get(self.kind, f"{self.kind}, K = {self.layer}")

    def context(
        self, model: PreTrainedModel, sizes: Sequence[PromptSize], seeds: Sequence[str]
    ) -> AbstractContextManager[Any]:
        """In which `model` answers so; `sizes` and `seeds`, from which random draws follow: of each row of a batch."""
        if self.kind == "full":
            return nullcontext()
        if self.kind == "blind":
            return blind(model)
        if self.kind == "auto":
            return withdraw(model, "auto", threshold=self.threshold)
        assert self.layer is not None
        if self.kind == "withdrawn":
            return withdraw(model, self.layer)
        if self.kind == "renumbered":
            return withdraw_renumbered(model, self.layer)
        return pruned(model, self.steps(model.config, sizes, seeds))

    def steps(self, config: PreTrainedConfig, sizes: Sequence[PromptSize], seeds: Sequence[str]) -> list[Step]:
        """Of a rival, with a share to keep for each row."""
        of_rows = [self.schedule(config, size) for size in sizes]
        shares = {at: tuple(schedule[at] for schedule in of_rows) for at in of_rows[0]}
        if self.kind == "random_tokens":
            return [RandomTokens(at, keep, seeds) for at, keep in shares.items()]
        return [KINDS[self.kind](at, keep) for at, keep in shares.items()]

    def schedule(self, config: PreTrainedConfig, size: PromptSize) -> dict[int, float]:
        """Of a rival, for one prompt."""
        assert self.kind in RIVALS
        assert self.layer is not None
        return equal_schedule(self.kind, config, size.tokens, size.visual, self.layer)

    def flops_left(self, config: PreTrainedConfig, size: PromptSize) -> float:
        """The share of the full prefill's FLOPs."""
        layers = config.get_text_config().num_hidden_layers
        full = prefill_flops(config, size.tokens, size.visual, layers)
        if self.kind == "blind":
            return prefill_flops(config, max(1, size.tokens - size.visual), 0, layers) / full
        at = self.schedule(config, size) if self.kind in RIVALS else self.layer or layers
        return prefill_flops(config, size.tokens, size.visual, at) / full


FULL = Variant("full")


def obstacle(vlm: VisionLanguageModel, variant: Variant) -> str | None:
    """Why a model can't answer so, in a sentence; None if it can."""
    try:
        if variant.kind == "renumbered":
            check_renumbered(vlm.model)
        elif variant.kind == "auto":
            check_automatic(vlm.model)
        elif variant.kind in RIVALS:
            for step in variant.steps(vlm.model.config, [PromptSize(64, 32)], ["a seed"]):
                step.check(vlm.model)
    except UserError as error:
        return str(error)
    return None
