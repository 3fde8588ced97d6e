"""Tokens that leave at random: what a method's choice is worth is known beside it.

Ablation "random" of Lin et al., AAAI 2025, arXiv 2405.05803.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from vtw_demo.errors import UserError
from vtw_demo.withdrawal.steps import Keep, Prompts, Step, pruned
from vtw_demo.withdrawal.withdraw import whole_number

Seed = int | str | Sequence[int | str]


@contextmanager
def random_tokens(model: PreTrainedModel, layer: int, keep: Keep = 0.0, seed: Seed = 0) -> Iterator[None]:
    """Remove as many tokens before decoder layer `layer` as there are visual ones, drawn at random, inside a `with`
    block: what is left to the layers from there on costs what it costs in `withdraw`.

    Text is drawn, too, but never the last token, from whose state the answer begins. With `keep`, so many fewer leave
    as the share `keep` of the visual tokens, rounded. A row's draw follows from its seed alone: `seed`, or where it is
    a sequence the one for that row.

    Raises what `withdraw` raises, and ValueError for a share outside 0 to 1, a layer outside 0 to L - 1, a batch of
    another number of rows than seeds, and a picture for a KV cache that holds tokens already.
    """
    with pruned(model, [RandomTokens(whole_number(layer, "The layer of random_tokens"), keep, seed)]):
        yield


@dataclass(frozen=True)
class RandomTokens(Step):
    """Visual tokens and text leave, drawn at random."""

    seed: Seed = 0

    word = "random_tokens"

    def leaving(self, prompts: Prompts) -> torch.Tensor:
        rows = len(prompts.visual)
        seeds = [self.seed] * rows if isinstance(self.seed, int | str) else self.seed
        if len(seeds) != rows:
            raise UserError(f"A seed is needed for each row; there are {len(seeds)} for {rows} rows.")
        leaving = torch.zeros_like(prompts.visual)
        for row, (seed, count) in enumerate(zip(seeds, prompts.excess(self.keep).tolist(), strict=True)):
            *drawn_from, _ = prompts.present[row].nonzero()[:, 0].tolist()
            leaving[row, random.Random(seed).sample(drawn_from, min(count, len(drawn_from)))] = True
        return leaving
