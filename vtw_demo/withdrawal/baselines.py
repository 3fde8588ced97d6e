"""Withdrawal with one thing changed, for those who doubt that the thing matters.

Each is a context of its own, built from the parts of `vtw_demo.withdrawal.withdraw`, and leaves the model as it was.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from vtw_demo.errors import UserError
from vtw_demo.withdrawal.architectures import check_family, find_decoder, unlike_llava
from vtw_demo.withdrawal.withdraw import Withdrawal, check_layer, exclusive


@contextmanager
def remove_at_random(model: PreTrainedModel, layer: int, seeds: Sequence[int | str]) -> Iterator[None]:
    """Before decoder layer `layer` remove as many tokens as there are visual ones, drawn at random from the prompt.

    Text is drawn, too, but never the last token, from whose state the answer begins. `seeds`: one for each row of the
    batch, from which alone its draw follows. (Ablation "random" of arXiv 2405.05803.)

    Raises what `withdraw` raises, and ValueError for a model in which more depends on a token's place than its
    position. Prefills with another number of rows raise ValueError.
    """
    check_random(model)
    layers = find_decoder(model).layers
    check_layer(layer, len(layers))
    with _running(_RemovalAtRandom(model, layers, layer, seeds)):
        yield


@contextmanager
def withdraw_renumbered(model: PreTrainedModel, layer: int) -> Iterator[None]:
    """Withdraw the visual tokens before decoder layer `layer`, and from there on count positions without them.

    In `withdraw` they keep theirs. This is `pe_type="shrink"` in the authors' code: text after the picture moves up to
    the text before it, and decoding goes on from there. A sliding window is still counted in the prompt's positions.

    Raises what `withdraw` raises, and ValueError for a model whose layers aren't handed embeddings of positions that
    count tokens.
    """
    check_renumbered(model)
    layers = find_decoder(model).layers
    check_layer(layer, len(layers))
    with _running(_RenumberedWithdrawal(model, layers, layer)):
        yield


@contextmanager
def blind(model: PreTrainedModel) -> Iterator[None]:
    """Withdraw the visual tokens before the first decoder layer: K = 0, where nothing has seen the picture.

    The text keeps its positions, as if the picture were there. Raises what `withdraw` raises.
    """
    check_family(model)
    with _running(Withdrawal(model, find_decoder(model).layers, 0)):
        yield


def check_random(model: PreTrainedModel) -> None:
    """Raise the ValueError that `remove_at_random` raises for a model."""
    check_family(model)
    if (reason := unlike_llava(model)) is not None:
        raise UserError(
            f"Random tokens can be removed from decoders like LLaVA's; that of {type(model).__name__} {reason}."
        )


def check_renumbered(model: PreTrainedModel) -> None:
    """Raise the ValueError that `withdraw_renumbered` raises for a model."""
    check_family(model)
    decoder, name = find_decoder(model), type(model).__name__
    if (reason := unlike_llava(model)) is not None:
        raise UserError(f"Positions can be renumbered in decoders like LLaVA's; that of {name} {reason}.")
    rotary = getattr(decoder, "rotary_emb", None)
    scaling = getattr(decoder.config, "rope_parameters", None) or {}
    if rotary is None or tuple(inspect.signature(rotary.forward).parameters) != ("x", "position_ids"):
        raise UserError(f"Positions can be renumbered where all layers share rotary embeddings; not so in {name}.")
    if "mrope_section" in scaling:
        raise UserError(f"Positions can be renumbered where they count tokens; {name} counts rows and columns.")


@contextmanager
def _running(withdrawal: Withdrawal) -> Iterator[None]:
    with exclusive(withdrawal.model):
        try:
            withdrawal.register()
            yield
        finally:
            withdrawal.remove()


class _RemovalAtRandom(Withdrawal):
    def __init__(self, model: PreTrainedModel, layers: nn.ModuleList, layer: int, seeds: Sequence[int | str]) -> None:
        super().__init__(model, layers, layer)
        self.seeds = tuple(seeds)

    def leaving(self, input_ids: torch.Tensor, padding_mask: torch.Tensor | None) -> torch.Tensor:
        visual = super().leaving(input_ids, padding_mask)
        if len(visual) != len(self.seeds):
            raise UserError(f"A seed is needed for each row; there are {len(self.seeds)} for {len(visual)} rows.")
        present = torch.ones_like(visual) if padding_mask is None else padding_mask.bool()
        chosen = torch.zeros_like(visual)
        for row, seed in enumerate(self.seeds):
            *drawn_from, _ = present[row].nonzero()[:, 0].tolist()
            chosen[row, random.Random(seed).sample(drawn_from, int(visual[row].sum()))] = True
        return chosen


class _RenumberedWithdrawal(Withdrawal):
    def before_layer(
        self, index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        changed = super().before_layer(index, module, args, kwargs)
        if changed is None:
            return None
        (hidden_states,), kwargs = changed
        forward = self.forward
        assert forward is not None
        assert forward.arguments is not None
        slots = forward.arguments.slots
        last = slots.count_at(forward.columns_before + forward.sequence_length)
        empty = 0 if slots.valid is None else (~slots.valid).sum(1, keepdim=True)
        position = torch.arange(last - hidden_states.shape[1], last, device=hidden_states.device)[None] - empty
        kwargs["position_ids"] = position.clamp(min=0).expand(hidden_states.shape[0], -1)
        kwargs["position_embeddings"] = self.decoder.rotary_emb(hidden_states, kwargs["position_ids"])
        return (hidden_states,), kwargs
