"""Visual tokens withdrawal: from decoder layer K on, a model goes on without its visual tokens.

Lin, Lin, Lin, Ji, "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid
Inference", AAAI 2025, arXiv 2405.05803; authors' code: github lzhxmu/VTW.
"""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from vtw_demo.errors import UserError
from vtw_demo.withdrawal.architectures import find_decoder, find_model
from vtw_demo.withdrawal.automatic_layer import THRESHOLD, AutomaticWithdrawal
from vtw_demo.withdrawal.steps import Prompts, Pruning, Step

Automatic = Literal["auto"]


@contextmanager
def withdraw(
    model: PreTrainedModel, layer: int | Automatic, *, threshold: float | None = None, this_thread_only: bool = False
) -> Iterator[Pruning]:
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

    With `layer="auto"` each prefill chooses K, from 2 to L, while it runs: where the visual tokens no longer move what
    the question attends to. In each layer, of up to 16 text positions at the prompt's end that follow the last visual
    token, the output of attention (all heads, before the output projection) is compared with what it would be without
    the visual tokens, by the cosine, mean over these positions. Once it was above `threshold` in two layers in a row
    that attend, the visual tokens leave before the next layer, in a batch once that holds for every row; K = L if it
    never does. What decides are rows of the attention matrix, no whole ones. (After VisiPruner, EMNLP 2025, which reads
    the last position alone.) Later passes with that KV cache keep its K. `layer` of what the block is given tells K:

        with withdraw(model, layer="auto") as withdrawal:
            model.generate(**inputs)
        print(withdrawal.layer)  # of the latest prefill in this thread

    A KV cache that was filled in one context belongs to its K: it can be used further in a context of the
    same K only, and in none outside.

    Raises
    - TypeError if `layer` is neither an integer (Python's, NumPy's or torch's) nor "auto",
    - ValueError unless 1 <= layer <= L,
    - ValueError for a `threshold` without "auto", and for "auto" where attention is neither sdpa nor eager,
    - ValueError for what is no model of transformers, or sharded by FSDP,
    - ValueError for a model in which withdrawal can't mean anything (cross-attention, an encoder-decoder, embeddings
      handed to an inner `generate`) or that isn't understood; and for one whose configuration names no placeholder
      tokens,
    - RuntimeError if a withdrawal is active on this model already,
    and from forward passes inside the block
    - ValueError if visual tokens can't be found: `inputs_embeds` without `input_ids`, or visual input without
      a placeholder token,
    - with "auto", ValueError for a prompt that ends with padding or a visual token, one that brings a picture to a KV
      cache whose K isn't known, and attention that isn't a plain softmax of scaled products,
    - RuntimeError for a KV cache of another K or of a block that was left, for training with gradient checkpointing,
      for arguments of decoder layers that aren't understood, and where the layers ran without their hooks.
    """
    model = find_model(model)
    layers = len(find_decoder(model).layers)
    layer = read_layer(layer, layers)
    pruning: Pruning
    if layer == "auto":
        steps = [Withdraw(at) for at in range(2, max(2, layers) + 1)]
        pruning = AutomaticWithdrawal(model, steps, THRESHOLD if threshold is None else threshold, this_thread_only)
    elif threshold is None:
        pruning = Pruning(model, [Withdraw(layer)], this_thread_only)
    else:
        raise UserError(f'A threshold goes with layer="auto"; this is {threshold} with layer {layer}.')
    with pruning:
        yield pruning


def read_layer(layer: Any, layer_count: int) -> int | Automatic:
    """The withdrawal layer, 1 to `layer_count`, or "auto"."""
    if isinstance(layer, str) and layer == "auto":
        return "auto"
    if isinstance(layer, str):
        raise TypeError(f'The withdrawal layer must be an integer, or "auto"; this is {layer!r}.')
    return check_layer(layer, layer_count)


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
