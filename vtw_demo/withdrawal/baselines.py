"""Withdrawal with one thing changed, for those who doubt that the thing matters."""

import inspect
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from vtw_demo.errors import UserError
from vtw_demo.withdrawal.architectures import find_decoder, find_model, unlike_llava
from vtw_demo.withdrawal.token_pruning import Changed, ForwardPass
from vtw_demo.withdrawal.withdraw import Withdrawal, check_layer


@contextmanager
def remove_at_random(model: PreTrainedModel, layer: int, seeds: Sequence[int | str]) -> Iterator[None]:
    """Before decoder layer `layer` remove as many tokens as there are visual ones, drawn at random from the prompt.

    Text is drawn, too, but never the last token, from whose state the answer begins. `seeds`: one for each row of the
    batch, from which alone its draw follows. (Ablation "random" of arXiv 2405.05803.)

    Raises what `withdraw` raises, and ValueError for a model in which more depends on a token's place than its
    position. Prefills with another number of rows raise ValueError.
    """
    model = find_model(model)
    check_random(model)
    with _RemovalAtRandom(model, check_layer(layer, len(find_decoder(model).layers)), seeds):
        yield


@contextmanager
def withdraw_renumbered(model: PreTrainedModel, layer: int) -> Iterator[None]:
    """Withdraw the visual tokens before decoder layer `layer`, and from there on count positions without them.

    In `withdraw` they keep theirs. This is `pe_type="shrink"` in the authors' code: text after the picture moves up to
    the text before it, and decoding goes on from there. A sliding window is still counted in the prompt's positions.

    Raises what `withdraw` raises, and ValueError for a model whose layers aren't handed embeddings of positions that
    count tokens.
    """
    model = find_model(model)
    check_renumbered(model)
    with _RenumberedWithdrawal(model, check_layer(layer, len(find_decoder(model).layers))):
        yield


@contextmanager
def blind(model: PreTrainedModel) -> Iterator[None]:
    """Withdraw the visual tokens before the first decoder layer: K = 0, where nothing has seen the picture.

    The text keeps its positions, as if the picture were there. Raises what `withdraw` raises.
    """
    with Withdrawal(find_model(model), 0):
        yield


def check_random(model: PreTrainedModel) -> None:
    """Raise UserError where `remove_at_random` can't be used."""
    if (reason := unlike_llava(model)) is not None:
        raise UserError(
            f"Random tokens can be removed from decoders like LLaVA's; that of {type(model).__name__} {reason}."
        )


def check_renumbered(model: PreTrainedModel) -> None:
    """Raise UserError where `withdraw_renumbered` can't be used."""
    decoder, name = find_decoder(model), type(model).__name__
    if (reason := unlike_llava(model)) is not None:
        raise UserError(f"Positions can be renumbered in decoders like LLaVA's; that of {name} {reason}.")
    rotary = getattr(decoder, "rotary_emb", None)
    scaling = getattr(decoder.config, "rope_parameters", None) or {}
    if rotary is None or tuple(inspect.signature(rotary.forward).parameters) != ("x", "position_ids"):
        raise UserError(f"Positions can be renumbered where all layers share rotary embeddings; not so in {name}.")
    if "mrope_section" in scaling:
        raise UserError(f"Positions can be renumbered where they count tokens; {name} counts rows and columns.")


class _RemovalAtRandom(Withdrawal):
    def __init__(self, model: PreTrainedModel, layer: int, seeds: Sequence[int | str]) -> None:
        super().__init__(model, layer)
        self.seeds = tuple(seeds)

    def leaving(self, forward: ForwardPass, visual: torch.Tensor) -> torch.Tensor:
        if len(visual) != len(self.seeds):
            raise UserError(f"A seed is needed for each row; there are {len(self.seeds)} for {len(visual)} rows.")
        present = torch.ones_like(visual) if forward.padding_mask is None else forward.padding_mask.bool()
        chosen = torch.zeros_like(visual)
        for row, seed in enumerate(self.seeds):
            *drawn_from, _ = present[row].nonzero()[:, 0].tolist()
            chosen[row, random.Random(seed).sample(drawn_from, int(visual[row].sum()))] = True
        return chosen


class _RenumberedWithdrawal(Withdrawal):
    def before_layer(self, index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Changed:
        if (changed := super().before_layer(index, module, args, kwargs)) is None:
            return None
        (hidden_states,), given = changed
        assert self.forward is not None
        inputs = self.forward.inputs
        positions = inputs.positions
        assert positions is not None
        end = positions.count_at(inputs.past_length + inputs.sequence_length)
        empty = 0 if positions.valid is None else (~positions.valid).sum(1, keepdim=True)
        numbers = torch.arange(end - hidden_states.shape[1], end, device=hidden_states.device)[None] - empty
        given["position_ids"] = numbers.clamp(min=0).expand(hidden_states.shape[0], -1)
        given["position_embeddings"] = self.decoder.rotary_emb(hidden_states, given["position_ids"])
        return (hidden_states,), given
