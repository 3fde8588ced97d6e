"""Visual tokens withdrawal: from decoder layer K on, a model goes on without its visual tokens.

Lin, Lin, Lin, Ji, "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid
Inference", AAAI 2025, arXiv 2405.05803; authors' code: github lzhxmu/VTW.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from vtw_demo.errors import UserError
from vtw_demo.withdrawal.architectures import check_family, find_decoder
from vtw_demo.withdrawal.segments import visual_token_ids
from vtw_demo.withdrawal.token_pruning import ForwardPass, TokenPruning, has_visual_input


@contextmanager
def withdraw(model: PreTrainedModel, layer: int) -> Iterator[None]:
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
    sequence.

    A KV cache that was filled in one context belongs to its K: it can be used further in a context of the
    same K only.

    Raises
    - TypeError if `layer` isn't an integer,
    - ValueError unless 1 <= layer <= L,
    - ValueError for a model in which withdrawal can't mean anything: cross-attention, an encoder-decoder,
      convolution or linear attention layers, embeddings handed to an inner `generate`; and for one whose
      configuration names no placeholder tokens,
    - RuntimeError if a withdrawal is active on this model already,
    and from forward passes inside the block
    - ValueError if visual tokens can't be found: `inputs_embeds` without `input_ids`, or visual input without
      a placeholder token,
    - RuntimeError for a KV cache of another K, for training with gradient checkpointing, and for arguments
      of decoder layers that aren't understood.
    """
    check_family(model)
    check_layer(layer, len(find_decoder(model).layers))
    with Withdrawal(model, layer):
        yield


def check_layer(layer: int, layer_count: int) -> None:
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise TypeError(f"The withdrawal layer must be an integer; this is {layer!r}.")
    if layer == 0:
        raise UserError(
            f"The withdrawal layer must be from 1 to {layer_count}, the number of decoder layers; this is 0. "
            "At 0 the model would never see the picture: leave the picture out of the prompt instead."
        )
    if not 1 <= layer <= layer_count:
        raise UserError(
            f"The withdrawal layer must be from 1 to {layer_count}, the number of decoder layers; this is {layer}."
        )


class Withdrawal(TokenPruning):
    """The visual tokens leave, which are known as soon as a prefill begins."""

    def begin_prefill(self, forward: ForwardPass, visual: torch.Tensor, given: dict[str, Any]) -> None:
        self.prune(forward, self.leaving(forward, visual))
        if forward.kept is None and has_visual_input(given):
            raise UserError(
                f"This forward pass of {type(self.model).__name__} is handed visual input, but none of "
                f"its tokens is one of the placeholders {visual_token_ids(self.model.config)}, so the "
                "visual tokens can't be found."
            )

    def leaving(self, forward: ForwardPass, visual: torch.Tensor) -> torch.Tensor:
        """Which tokens leave the sequence, bool, shape (batch, sequence)."""
        return visual
