"""Visual tokens withdrawal: from decoder layer K on, a model goes on without its visual tokens.

Lin, Lin, Lin, Ji, "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid
Inference", AAAI 2025, arXiv 2405.05803; authors' code: github lzhxmu/VTW.
"""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from vtw_demo.errors import UserError
from vtw_demo.withdrawal.architectures import find_decoder, find_model
from vtw_demo.withdrawal.steps import Prompts, Pruning, Step


@contextmanager
def withdraw(model: PreTrainedModel, layer: int, *, this_thread_only: bool = False) -> Iterator[None]:
    """Withdraw the visual tokens of `model` at the withdrawal layer `layer` (K), inside a `with` block.

        with withdraw(model, layer=15):
            model.generate(**inputs)

    Before decoder layer K (counted from 0) runs in a prefill, the visual tokens leave the sequence. The kept
    tokens keep their positions. Layers below K work as ever; layers from K on never hold a visual key or
    value. Decoding goes on with the KV cache, in which layers from K on are shorter, and counts positions
    from the full prompt. A prompt without visual tokens runs unchanged. K = L, the number of decoder
    layers, withdraws nothing. (arXiv 2405.05803, section 4; `pe_type="keep"` in the authors' code.)

    What a caller sees keeps its shape: in logits, loss and hidden states of shape (batch, sequence, ...), a
    withdrawn token stays as it was at layer K. (In transformers 5.0 the hidden states of layers from K on are
    those of the kept tokens.) Attention weights of layers from K on are those among the kept tokens.

    `model` is any vision-language model of transformers whose visual tokens are in its decoder's own
    sequence; with PEFT's adapters, compiled, dispatched or offloaded by accelerate too. Inside the block it runs
    as it is written: nothing in this process runs compiled there, at K = L neither.

    Forward passes of all threads withdraw inside the block, each by itself; with `this_thread_only` those of other
    threads go on as ever. Leaving waits for the pass that another thread is in. A generation that began before the
    block goes on without withdrawal.

    A KV cache that was filled in one context belongs to its K: it can be used further in a context of the
    same K only, and in none outside.

    Raises
    - TypeError if `layer` isn't an integer (Python's, NumPy's or torch's),
    - ValueError unless 1 <= layer <= L,
    - ValueError for what is no model of transformers, or sharded by FSDP,
    - ValueError for a model in which withdrawal can't mean anything (cross-attention, an encoder-decoder, embeddings
      handed to an inner `generate`) or that isn't understood; and for one whose configuration names no placeholder
      tokens,
    - RuntimeError if a withdrawal is active on this model already,
    and from forward passes inside the block
    - ValueError if visual tokens can't be found: `inputs_embeds` without `input_ids`, or visual input without
      a placeholder token,
    - RuntimeError for a KV cache of another K or of a block that was left, for training with gradient checkpointing,
      for arguments of decoder layers that aren't understood, and where the layers ran without their hooks.
    """
    model = find_model(model)
    with Pruning(model, [Withdraw(check_layer(layer, len(find_decoder(model).layers)))], this_thread_only):
        yield


def whole_number(value: Any, what: str) -> int:
    """An integer of Python, NumPy or torch as Python's; TypeError for anything else, truth values too."""
    try:
        if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{what} must be an integer; this is {value!r}.") from None


def check_layer(layer: Any, layer_count: int) -> int:
    """The withdrawal layer, 1 to `layer_count`."""
    layer = whole_number(layer, "The withdrawal layer")
    if layer == 0:
        raise UserError(
            f"The withdrawal layer must be from 1 to {layer_count}, the number of decoder layers; this is 0. "
            "At 0 the model would never see the picture: leave the picture out of the prompt instead."
        )
    if not 1 <= layer <= layer_count:
        raise UserError(
            f"The withdrawal layer must be from 1 to {layer_count}, the number of decoder layers; this is {layer}."
        )
    return layer


@dataclass(frozen=True)
class Withdraw(Step):
    """All visual tokens leave that are there."""

    word = "withdraw"

    def check(self, model: PreTrainedModel) -> None:
        check_layer(self.layer, len(find_decoder(model).layers))

    def leaving(self, prompts: Prompts) -> torch.Tensor:
        return prompts.visual
