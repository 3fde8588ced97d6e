"""Withdrawal with one thing changed, for those who doubt that the thing matters."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from vtw_demo.errors import UserError
from vtw_demo.withdrawal.architectures import find_decoder, find_model, unlike_llava
from vtw_demo.withdrawal.steps import Pruning
from vtw_demo.withdrawal.token_pruning import Changed
from vtw_demo.withdrawal.withdraw import Withdraw, check_layer


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
    with _RenumberedWithdrawal(model, [Withdraw(check_layer(layer, len(find_decoder(model).layers)))]):
        yield


@contextmanager
def blind(model: PreTrainedModel) -> Iterator[None]:
    """Withdraw the visual tokens before the first decoder layer: K = 0, where nothing has seen the picture.

    The text keeps its positions, as if the picture were there. Raises what `withdraw` raises.
    """
    with Pruning(find_model(model), [Withdraw(0)]):
        yield


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


class _RenumberedWithdrawal(Pruning):
    def before_layer(self, index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Changed:
        if (changed := super().before_layer(index, module, args, kwargs)) is None:
            return None
        (hidden_states,), given = changed
        assert self.forward is not None
        (inputs,) = self.forward.stages.values()
        positions = inputs.positions
        assert positions is not None
        end = positions.count_at(inputs.past_length + inputs.sequence_length)
        empty = 0 if positions.valid is None else (~positions.valid).sum(1, keepdim=True)
        numbers = torch.arange(end - hidden_states.shape[1], end, device=hidden_states.device)[None] - empty
        given["position_ids"] = numbers.clamp(min=0).expand(hidden_states.shape[0], -1)
        given["position_embeddings"] = self.decoder.rotary_emb(hidden_states, given["position_ids"])
        return (hidden_states,), given
