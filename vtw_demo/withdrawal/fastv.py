"""FastV: visual tokens that get little attention are dropped after a few layers.

Chen et al., "An Image is Worth 1/2 Tokens After Layer 2", ECCV 2024, arXiv 2403.06764.
"""

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from vtw_demo.errors import UserError
from vtw_demo.withdrawal.architectures import find_decoder, find_model, unlike_llava
from vtw_demo.withdrawal.attention_capture import captured_rows
from vtw_demo.withdrawal.teacher_forcing import check_prompt, check_prompt_end
from vtw_demo.withdrawal.token_pruning import ForwardPass, TokenPruning
from vtw_demo.withdrawal.withdraw import whole_number

FASTV_SHARE = 0.5
FASTV_LAYER = 2
"""Half of the visual tokens, after two layers: the setting that the paper is named for."""


@contextmanager
def fastv(
    model: PreTrainedModel, share: float | Sequence[float] = FASTV_SHARE, layer: int = FASTV_LAYER
) -> Iterator[None]:
    """Prune visual tokens of `model` before decoder layer `layer` (K, counted from 0), inside a `with` block.

    In a prefill, each prompt's visual tokens are ranked by the attention, mean over heads, that its last token gives
    them in layer K - 1. The share of `share`, rounded down, that gets least is dropped before layer K; a sequence has
    one for each row of the batch. The others keep their positions, and the KV cache of layers from K on holds these
    alone (section 4.1: filtering ratio R, filtering layer K). What a caller sees keeps its shape: a dropped token stays
    as it was at layer K.

    Raises ValueError for a share outside 0 to 1, a layer outside 1 to L - 1, and a model in which more depends on a
    token's place than its position, or whose attention is neither sdpa nor eager; RuntimeError if a withdrawal or
    FastV is active on the model already. Forward passes raise ValueError for a prompt that has no input_ids, ends
    with padding or a visual token, or brings a picture to a KV cache that holds tokens already.
    """
    model, layer = find_model(model), whole_number(layer, "FastV's layer")
    check_fastv(model, share, layer)
    with _FastV(model, share, layer):
        yield


def check_fastv(model: PreTrainedModel, share: float | Sequence[float], layer: int) -> None:
    decoder, name = find_decoder(model), type(model).__name__
    last = len(decoder.layers) - 1
    if not all(0 <= part <= 1 for part in (share if isinstance(share, Sequence) else [share])):
        raise UserError(f"The share of visual tokens to drop must be from 0 to 1; this is {share}.")
    if not 1 <= layer <= last:
        raise UserError(f"FastV's layer must be from 1 to {last} in {name}; this is {layer}.")
    implementation = decoder.config._attn_implementation
    if implementation not in ("sdpa", "eager"):
        raise UserError(f"FastV is written here for sdpa or eager attention; that of {name} is {implementation}.")
    if (reason := unlike_llava(model)) is not None:
        raise UserError(f"FastV is written here for decoders like LLaVA's; that of {name} {reason}.")


class _FastV(TokenPruning):
    name = "FastV"

    def __init__(self, model: PreTrainedModel, share: float | Sequence[float], layer: int) -> None:
        super().__init__(model, layer)
        self.share = share
        self.captures = defaultdict[int, ExitStack](ExitStack)
        """What captures attention in each thread."""

    def register(self) -> None:
        self.hooks.callback(self.after_ranked)  # an interrupt passes by the layer's own hook
        ranked = self.layers[self.layer - 1]
        self.hook_before(ranked, self.before_ranked)
        self.hook_after(ranked, self.after_ranked, always_call=True)
        super().register()

    def begin_prefill(self, forward: ForwardPass, visual: torch.Tensor, given: dict[str, Any]) -> None:
        if held := forward.inputs.past_length:
            raise UserError(
                f"FastV ranks the visual tokens of a whole prompt, and this KV cache holds {held} tokens "
                "already. Start with a new one."
            )
        if visual.any():
            check_prompt(given)
            check_prompt_end(self.model, given)
            forward.visual = visual

    def before_ranked(self, *_: Any) -> None:
        if self.forward is not None and self.forward.visual is not None:
            rank = partial(self.rank, self.forward, self.forward.visual)
            self.captures[threading.get_ident()].enter_context(captured_rows(self.model, 1, rank))

    def after_ranked(self, *_: Any) -> None:
        self.captures[threading.get_ident()].close()

    def rank(self, forward: ForwardPass, visual: torch.Tensor, layer_index: int, weights: torch.Tensor) -> None:
        scores = weights[:, 0, : visual.shape[1]].masked_fill(~visual, torch.inf)  # a static cache has further keys
        count = (visual.sum(1) * torch.as_tensor(self.share, dtype=torch.double, device=scores.device)).long()
        self.prune(forward, scores.argsort(1).argsort(1) < count[:, None])
