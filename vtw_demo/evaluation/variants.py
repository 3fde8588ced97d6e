"""The variants of a model that an evaluation compares: the full model, withdrawal at each K, and the ablations."""

from bisect import bisect_left
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

from transformers import PreTrainedConfig, PreTrainedModel

from vtw_demo.errors import UserError
from vtw_demo.measurements.flops import prefill_flops
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.withdrawal.baselines import blind, check_random, check_renumbered, remove_at_random, withdraw_renumbered
from vtw_demo.withdrawal.fastv import FASTV_LAYER, FASTV_SHARE, check_fastv, fastv
from vtw_demo.withdrawal.withdraw import withdraw

Ablation = Literal["random", "renumbered", "blind", "fastv"]
ABLATIONS: tuple[Ablation, ...] = get_args(Ablation)


@dataclass(frozen=True)
class PromptSize:
    """How many tokens a prompt has, padding not counted, and how many of them are visual."""

    tokens: int
    visual: int


@dataclass(frozen=True)
class Variant:
    """One way to answer: the model as it is, or with a method that takes tokens out.

    - `kind`: "full"; "withdrawn", the visual tokens leave before decoder layer `layer`; or an ablation: "random", as
      many random tokens leave there; "renumbered", the visual tokens leave there and the others close ranks; "fastv",
      FastV drops visual tokens after 2 layers, so many that its prefill takes as many FLOPs as withdrawal at `layer`;
      "blind", no layer sees the picture.
    - `layer`: K; None for "full" and "blind".
    """

    kind: Literal["full", "withdrawn", "random", "renumbered", "blind", "fastv"]
    layer: int | None = None

    @property
    def name(self) -> str:
        """As it stands in tables and files."""
        said = {"full": "full", "blind": "blind (K = 0)", "withdrawn": f"K = {self.layer}"}
        return said.get(self.kind, f"{self.kind}, K = {self.layer}")

    def context(
        self, model: PreTrainedModel, sizes: Sequence[PromptSize], seeds: Sequence[str]
    ) -> AbstractContextManager[None]:
        """In which `model` answers so; `sizes` and `seeds`, from which random draws follow: of each row of a batch."""
        if self.kind == "full":
            return nullcontext()
        if self.kind == "blind":
            return blind(model)
        assert self.layer is not None
        if self.kind == "withdrawn":
            return withdraw(model, self.layer)
        if self.kind == "renumbered":
            return withdraw_renumbered(model, self.layer)
        if self.kind == "random":
            return remove_at_random(model, self.layer, seeds)
        return fastv(model, [fastv_share(model.config, size, self.layer) for size in sizes], FASTV_LAYER)

    def flops_left(self, config: PreTrainedConfig, size: PromptSize) -> float:
        """The share of the full prefill's FLOPs; what FastV's ranking takes isn't counted."""
        layers = config.get_text_config().num_hidden_layers
        full = prefill_flops(config, size.tokens, size.visual, layers)
        if self.kind == "blind":
            return prefill_flops(config, max(1, size.tokens - size.visual), 0, layers) / full
        layer = self.layer or layers
        if self.kind == "fastv":
            return prefill_flops(config, size.tokens, fastv_dropped(config, size, layer), FASTV_LAYER) / full
        return prefill_flops(config, size.tokens, size.visual, layer) / full


FULL = Variant("full")


def fastv_dropped(config: PreTrainedConfig, size: PromptSize, layer: int) -> int:
    """How many visual tokens FastV has to drop before its layer 2 to take no more FLOPs than withdrawal at `layer`.

    Raises UserError where it can't: at K = 1, and for decoders whose costs aren't known.
    """
    allowed = prefill_flops(config, size.tokens, size.visual, layer)

    def is_enough(dropped: int) -> bool:
        return prefill_flops(config, size.tokens, dropped, FASTV_LAYER) <= allowed

    if not is_enough(size.visual):
        raise UserError(
            f"FastV drops tokens after {FASTV_LAYER} layers, and can't save as much as withdrawal at K = {layer}."
        )
    return bisect_left(range(size.visual), True, key=is_enough)


def fastv_share(config: PreTrainedConfig, size: PromptSize, layer: int) -> float:
    """The share of visual tokens that `fastv` is to drop: what it rounds down to `fastv_dropped`."""
    if not size.visual:
        return 0.0
    return min(1.0, (fastv_dropped(config, size, layer) + 0.5) / size.visual)


def obstacle(vlm: VisionLanguageModel, variant: Variant) -> str | None:
    """Why a model can't answer so, in a sentence; None if it can."""
    try:
        if variant.kind == "random":
            check_random(vlm.model)
        elif variant.kind == "renumbered":
            check_renumbered(vlm.model)
        elif variant.kind == "fastv":
            assert variant.layer is not None
            check_fastv(vlm.model, FASTV_SHARE, FASTV_LAYER)
            fastv_dropped(vlm.model.config, PromptSize(64, 32), variant.layer)
    except UserError as error:
        return str(error)
    return None
