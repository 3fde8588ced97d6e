"""Prunings in steps: at each, before a decoder layer, some of the tokens leave for good. A method is a kind of step."""

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch.nn.functional import pad
from transformers import PreTrainedModel

from vtw_demo.errors import UserError
from vtw_demo.withdrawal.architectures import find_attention, find_decoder, find_model, traced
from vtw_demo.withdrawal.attention_capture import attention_of, captured_rows
from vtw_demo.withdrawal.segments import visual_token_ids
from vtw_demo.withdrawal.teacher_forcing import check_prompt, check_prompt_end
from vtw_demo.withdrawal.token_pruning import ForwardPass, TokenPruning, has_visual_input

Keep = float | Sequence[float]
"""A share of a prompt's visual tokens, 0 to 1; of all rows of a batch, or one for each row."""


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts as a step finds it, of shape (batch, sequence).

    - `visual`, bool: where the visual tokens are, or were.
    - `left`, bool: which tokens have left, visual or not.
    - `present`, bool: which are there, padding aside.
    - `scores`, float32: the attention, mean over heads, that the last token gives each in the layer before; None for
      steps that don't rank by it.
    """

    visual: torch.Tensor
    left: torch.Tensor
    present: torch.Tensor
    scores: torch.Tensor | None

    def excess(self, keep: Keep) -> torch.Tensor:
        """How many further tokens each row has to lose, int64, shape (batch,), until as many have left as visual ones
        beyond the share `keep`, rounded."""
        visual = self.visual.sum(1).cpu()  # where numbers are precise enough to be rounded as costs round them
        if isinstance(keep, Sequence) and len(keep) != len(visual):
            raise UserError(f"A share is needed for each row; there are {len(keep)} for {len(visual)} rows.")
        leaving = visual - (visual * torch.as_tensor(keep, dtype=torch.double) + 0.5).long()
        return (leaving.to(self.visual.device) - self.left.sum(1)).clamp(min=0)


@dataclass(frozen=True)
class Step:
    """What leaves before decoder layer `layer`, counted from 0, until the share `keep` of the visual tokens is left."""

    layer: int
    keep: Keep = 0.0

    word: ClassVar[str]  # by which recipes call it
    first_layer: ClassVar[int] = 0
    ranks: ClassVar[bool] = False  # by the attention in the layer before

    def leaving(self, prompts: Prompts) -> torch.Tensor:
        """Which tokens leave, bool, shape (batch, sequence)."""
        raise NotImplementedError

    def check(self, model: PreTrainedModel) -> None:
        """Raise UserError where this step can't be taken."""
        decoder, name = find_decoder(model), type(model).__name__
        last = len(decoder.layers) - 1
        if not all(0 <= share <= 1 for share in (self.keep if isinstance(self.keep, Sequence) else [self.keep])):
            raise UserError(f"The share of visual tokens to keep must be from 0 to 1; this is {self.keep}.")
        if not self.first_layer <= self.layer <= last:
            raise UserError(
                f"The layer of {self.word} must be from {self.first_layer} to {last} in {name}; this is {self.layer}."
            )
        implementation = attention_of(model)
        if self.ranks and implementation not in ("sdpa", "eager"):
            raise UserError(
                f"{self.word} is written here for sdpa or eager attention; that of {name} is {implementation}."
            )
        if self.ranks and find_attention(traced(decoder.layers[self.layer - 1])) is None:
            raise UserError(
                f"{self.word} ranks by the attention in the layer before layer {self.layer}, and in {name} that one "
                "doesn't attend. Choose another."
            )


def check_order(steps: Sequence[Step]) -> None:
    """Raise UserError unless there are steps, at one layer each, in ascending order, and the shares don't grow."""
    if not steps:
        raise UserError("There is no layer before which tokens are to leave. Name one at least.")
    for before, step in pairwise(steps):
        if step.layer <= before.layer:
            raise UserError(
                f"Steps go from layer to layer, one at each; {step.word} at layer {step.layer} comes after "
                f"{before.word} at layer {before.layer}."
            )
        if isinstance(step.keep, float) and isinstance(before.keep, float) and step.keep > before.keep:
            raise UserError(
                f"{step.word} at layer {step.layer} is to keep {step.keep:g} of the visual tokens, and only "
                f"{before.keep:g} of them are left from layer {before.layer} on. Shares are of all that the prompt had."
            )


@contextmanager
def pruned(
    model: PreTrainedModel, steps: Sequence[Step], this_thread_only: bool = False, answer_length: int = 0
) -> Iterator["Pruning"]:
    """Take `steps`, in ascending order of their layers, in the forward passes of `model` inside a `with` block; in
    prefills whose last `answer_length` tokens are an answer that is given, as if the prompt ended before them."""
    model = find_model(model)
    for step in steps:
        step.check(model)
    with Pruning(model, steps, this_thread_only, answer_length) as pruning:
        yield pruning


class Pruning(TokenPruning):
    """One or more steps; a step at K = L takes nothing."""

    def __init__(
        self, model: PreTrainedModel, steps: Sequence[Step], this_thread_only: bool = False, answer_length: int = 0
    ) -> None:
        layers = len(find_decoder(model).layers)
        self.steps = tuple(step for step in steps if step.layer < layers)
        super().__init__(model, [step.layer for step in self.steps], this_thread_only)
        self.name, self.answer_length = steps[0].word, answer_length
        self.pictureless_from = min((step.layer for step in self.steps if step.word == "withdraw"), default=layers)
        self.captures = defaultdict[int, ExitStack](ExitStack)
        """What captures attention in each thread."""

    @property
    def layer(self) -> int | None:
        """The layer before which the last visual tokens leave; L where some stay."""
        return self.pictureless_from

    def register(self) -> None:
        self.hooks.callback(self.after_ranked)  # an interrupt passes by the layer's own hook
        for number, step in enumerate(self.steps):
            if step.ranks:
                ranked = self.layers[step.layer - 1]
                self.hook_before(ranked, partial(self.before_ranked, number))
                self.hook_after(ranked, self.after_ranked, always_call=True)
        super().register()

    def begin_prefill(self, forward: ForwardPass, visual: torch.Tensor, given: dict[str, Any]) -> None:
        held = forward.past_length
        forward.prunes = bool(visual.any())
        if not forward.prunes:
            # phi4_multimodal is handed its pictures again while it decodes.
            if not held and has_visual_input(given):
                raise UserError(
                    f"This forward pass of {type(self.model).__name__} is handed visual input, but none of "
                    f"its tokens is one of the placeholders {visual_token_ids(self.model.config)}, so the "
                    "visual tokens can't be found."
                )
            return
        if held and any(step.word != "withdraw" for step in self.steps):
            raise UserError(
                f"{self.name} chooses among the visual tokens of a whole prompt, and this KV cache holds {held} tokens "
                "already. Start with a new one."
            )
        if any(step.ranks for step in self.steps):
            check_prompt({"input_ids": given["input_ids"], "attention_mask": forward.padding_mask})
            check_prompt_end(self.model, {"input_ids": given["input_ids"][:, : self.prompt_end]})
            forward.untouched = 1
        forward.visual, forward.left = visual, torch.zeros_like(visual)
        self.take(forward, 0)

    @property
    def prompt_end(self) -> int | None:
        return -self.answer_length or None

    def held(self, layer_index: int) -> torch.Tensor | None:
        """The positions of the keys that a layer has in this thread's forward pass, int64, shape (batch, keys); None
        where none has left before it."""
        keys_of = None if self.forward is None else self.pruned_stage(self.forward, self.key_sources[layer_index])
        return None if keys_of is None or keys_of.positions is None else keys_of.positions.held

    def take(self, forward: ForwardPass, number: int, scores: torch.Tensor | None = None) -> None:
        """Take the step of this number, with its scores if it ranks, and those after it up to one that ranks."""
        for step in self.steps[number:]:
            if step.ranks and scores is None:
                return
            visual, left, padding_mask = forward.visual, forward.left, forward.padding_mask
            assert visual is not None
            assert left is not None
            present = ~left if padding_mask is None else padding_mask.bool() & ~left
            end = self.prompt_end
            leaving = step.leaving(Prompts(visual[:, :end], left[:, :end], present[:, :end], scores))
            forward.left = left | pad(leaving, (0, self.answer_length))
            self.prune(forward, step.layer, forward.left)
            scores = None

    def before_ranked(self, number: int, *_: Any) -> None:
        if self.forward is not None and self.forward.prunes:
            rank = partial(self.rank, self.forward, number)
            rows = captured_rows(self.model, 1, rank, self.answer_length)
            self.captures[threading.get_ident()].enter_context(rows)

    def after_ranked(self, *_: Any) -> None:
        self.captures[threading.get_ident()].close()

    def rank(self, forward: ForwardPass, number: int, layer_index: int, heads: torch.Tensor, _: torch.Tensor) -> None:
        assert forward.visual is not None
        weights, visual = heads.mean(dim=1)[:, 0], forward.visual.to(heads.device)
        keys_of = self.pruned_stage(forward, self.key_sources[layer_index])
        if keys_of is None:
            scores = weights[:, : visual.shape[1]]  # a static cache has further keys
        else:
            assert keys_of.positions is not None
            held, valid = keys_of.positions.held.to(weights.device), keys_of.positions.valid
            of_held = weights[:, : held.shape[1]]
            if valid is not None:
                of_held = of_held.masked_fill(~valid.to(weights.device), 0)
            scores = torch.zeros(visual.shape, device=weights.device).scatter_reduce(1, held, of_held, reduce="amax")
        self.take(forward, number, scores[:, : self.prompt_end].to(forward.visual.device))
