"""FastV: visual tokens that get little attention are dropped after a few layers.

Chen et al., "An Image is Worth 1/2 Tokens After Layer 2", ECCV 2024, arXiv 2403.06764; authors' code: github
pkunlp-icler/FastV.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from vtw_demo.withdrawal.steps import Keep, Prompts, Step, pruned
from vtw_demo.withdrawal.withdraw import whole_number

FASTV_KEEP = 0.5
FASTV_LAYER = 2
"""Half of the visual tokens, after two layers: the setting that the paper is named for."""


@contextmanager
def fastv(model: PreTrainedModel, layer: int = FASTV_LAYER, keep: Keep = FASTV_KEEP) -> Iterator[None]:
    """Drop visual tokens of `model` before decoder layer `layer` (K, counted from 0), inside a `with` block.

    In a prefill, each prompt's visual tokens are ranked by the attention, mean over heads, that its last token gives
    them in layer K - 1. Those that get most stay, the share `keep` of them, rounded (1 - R of the paper's filtering
    ratio, section 4.1); a sequence has a share for each row of the batch. The tokens that stay keep their positions,
    and the KV cache of layers from K on holds these alone. What a caller sees keeps its shape: a dropped token stays as
    it was at layer K.

    Raises what `withdraw` raises, and ValueError for a share outside 0 to 1, a layer outside 1 to L - 1 or after one
    that doesn't attend, and attention that is neither sdpa nor eager. Forward passes raise ValueError for a prompt that
    ends with padding or a visual token, or brings a picture to a KV cache that holds tokens already.
    """
    with pruned(model, [FastV(whole_number(layer, "FastV's layer"), keep)]):
        yield


@dataclass(frozen=True)
class FastV(Step):
    """Those leave that get the least attention."""

    word = "fastv"
    first_layer = 1
    ranks = True

    def leaving(self, prompts: Prompts) -> torch.Tensor:
        assert prompts.scores is not None
        scores = prompts.scores.masked_fill(~(prompts.visual & prompts.present), torch.inf)
        return scores.argsort(dim=1, stable=True).argsort(1) < prompts.excess(self.keep)[:, None]
