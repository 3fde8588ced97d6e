"""What a model's head makes of hidden states."""

import threading
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from vtw_demo.models.devices import check_finite
from vtw_demo.withdrawal.architectures import find_decoder
from vtw_demo.withdrawal.compilation import uncompiled

POSITIONS_AT_ONCE = 128  # that the head should run on: it bounds the memory for logits of long answers

Rest = tuple[None, ...] | None
"""In place of what decoder layers hand on beside hidden states; None where they hand on these alone."""


def rest_of(output: Any) -> Rest:
    return (None,) * (len(output) - 1) if isinstance(output, tuple) else None


def logits_of(model: PreTrainedModel, hidden_states: torch.Tensor, token_id: int, rest: Rest) -> torch.Tensor:
    """The logits, shape (positions, vocabulary), that `model` makes of hidden states, shape (..., positions, hidden),
    as its last decoder layer hands them on.

    - `token_id`: of any text token; the forward pass that this takes begins with so many of them.
    - `rest`: `rest_of` what a decoder layer of this model hands on.

    All but the decoder layers runs, in the model's own forward pass: what models do to hidden states and logits besides
    norm and head (scales, soft caps) differs.
    """
    layers = find_decoder(model).layers
    input_ids = torch.full((1, hidden_states.shape[-2]), token_id, device=hidden_states.device)

    this_thread = threading.get_ident()
    whole = hidden_states.unsqueeze(-3)
    handed_on = whole if rest is None else (whole, *rest)

    def stand_in(forward: Any, *args: Any, **kwargs: Any) -> Any:
        return handed_on if threading.get_ident() == this_thread else forward(*args, **kwargs)

    replaced = [(layer, layer.__dict__.get("forward")) for layer in layers]
    try:
        with uncompiled():
            for layer in layers:
                layer.forward = partial(stand_in, layer.forward)
            return check_finite(model(input_ids=input_ids, use_cache=False).logits[0])
    finally:
        for layer, forward in replaced:
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward
