"""Withdrawal whose layer the prefill chooses while it runs: where visual tokens cease to move the question.

After VisiPruner, EMNLP 2025 (github EIT-NLP/VisiPruner), which reads the last position alone; here those of the whole
question are read.
"""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from vtw_demo.errors import UserError
from vtw_demo.withdrawal.architectures import adds_features_after, find_attention
from vtw_demo.withdrawal.attention_capture import attention_of, captured_rows, output_cosine
from vtw_demo.withdrawal.kept_tokens import keep_tokens
from vtw_demo.withdrawal.layer_inputs import LayerInputs
from vtw_demo.withdrawal.steps import Pruning, Step
from vtw_demo.withdrawal.teacher_forcing import check_prompt, check_prompt_end
from vtw_demo.withdrawal.token_pruning import Changed, ForwardPass, other_cache

THRESHOLD = 0.98
QUESTION_POSITIONS = 16


def check_automatic(model: PreTrainedModel) -> None:
    """Raise UserError where a prefill can't choose K."""
    implementation = attention_of(model)
    if implementation not in ("sdpa", "eager"):
        raise UserError(
            f'layer="auto" is written here for sdpa or eager attention; that of {type(model).__name__} is '
            f"{implementation}. Name a layer."
        )


@dataclass
class Choice:
    """What one prefill has found so far.

    - `question`, bool, shape (batch, positions): which of the last positions count.
    - `above`, bool, shape (batch,): in which rows the cosine was above the threshold in the latest layer; `settled`: in
      which it has been so twice in a row.
    - `measured`: how many layers have been. `first`: the first K from which on no visual features are added.
    """

    forward: ForwardPass
    question: torch.Tensor
    above: torch.Tensor
    settled: torch.Tensor
    measured: int = 0
    first: int = 0


class AutomaticWithdrawal(Pruning):
    """Withdrawal before one of the layers of `steps`, which each prefill chooses, or before none."""

    def __init__(
        self, model: PreTrainedModel, steps: Sequence[Step], threshold: float, this_thread_only: bool = False
    ) -> None:
        super().__init__(model, steps, this_thread_only)
        check_automatic(model)
        if math.isnan(threshold):
            raise UserError("The threshold is one of cosines; this is nan, which none is above.")
        self.pictureless_from = len(self.layers)
        self.threshold = threshold
        self.attending = [index for index, layer in enumerate(self.layers[:-1]) if find_attention(layer) is not None]
        self.choices: dict[int, Choice] = {}
        """That of the prefill that is under way in each thread, until K is known."""
        self.chosen: dict[int, int] = {}
        """K of the latest prefill in each thread."""

    @property
    def layer(self) -> int | None:
        """K of the latest prefill in this thread; None before the first."""
        return self.chosen.get(threading.get_ident())

    @property
    def choice(self) -> Choice | None:
        return self.choices.get(threading.get_ident())

    def register(self) -> None:
        for index in self.attending:
            self.hook_before(self.layers[index], self.before_measured)
            self.hook_after(self.layers[index], self.after_ranked, always_call=True)
        super().register()

    def layers_of_pass(self, noted: tuple[int, ...]) -> tuple[int, ...]:
        if len(noted) > 1 or not set(noted) <= set(self.at):
            raise other_cache(noted, "one that the prefill chooses")
        return noted

    def begin_prefill(self, forward: ForwardPass, visual: torch.Tensor, given: dict[str, Any]) -> None:
        super().begin_prefill(forward, visual, given)
        self.chosen[threading.get_ident()] = min(forward.stages, default=len(self.layers))
        if not forward.prunes or forward.stages:
            return
        if forward.past_length:
            raise UserError(
                f'layer="auto" chooses the layer by a whole prompt, and this KV cache holds {forward.past_length} '
                "tokens already, none of which has been withdrawn. Start with a new one."
            )
        check_prompt({"input_ids": given["input_ids"], "attention_mask": forward.padding_mask})
        check_prompt_end(self.model, given)
        kept = keep_tokens(visual, forward.padding_mask)
        assert kept is not None
        forward.untouched = kept.tail
        present = torch.ones_like(visual) if forward.padding_mask is None else forward.padding_mask.bool()
        follows = visual.flip(1).cumsum(1).flip(1) == 0
        text = ~visual.any(1)  # rows that have nothing to wait for
        choice = Choice(forward, (present & follows)[:, -QUESTION_POSITIONS:], text, text)
        self.choices[threading.get_ident()] = choice

    def take(self, forward: ForwardPass, number: int, scores: torch.Tensor | None = None) -> None:
        """Of a KV cache whose K is known: the same again."""
        for layer in forward.stages:
            forward.pictureless_from = layer
            assert forward.visual is not None
            self.prune(forward, layer, forward.visual)

    def before_decoder(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> Changed:
        if self.choice is not None:
            layers = range(len(self.layers) + 1)
            self.choice.first = next(layer for layer in layers if not adds_features_after(kwargs, layer))
        return super().before_decoder(module, args, kwargs)

    def before_measured(self, *_: Any) -> None:
        if self.choice is not None:
            receive = partial(self.judge, self.choice)
            rows = captured_rows(self.model, self.choice.question.shape[1], receive)
            self.captures[threading.get_ident()].enter_context(rows)

    def judge(self, choice: Choice, index: int, weights: torch.Tensor, value: torch.Tensor) -> None:
        """Note a layer's cosines, and choose K if they were above the threshold twice in every row."""
        if index != self.attending[choice.measured]:
            raise self.unmeasured(choice)
        choice.measured += 1
        visual = choice.forward.visual
        assert visual is not None
        # A static cache has further keys, which nothing attends to.
        keys = visual.new_zeros(len(visual), weights.shape[-1])
        keys[:, : visual.shape[1]] = visual
        cosines = output_cosine(weights, value, keys.to(weights.device)).to(visual.device)
        question = choice.question[:, -cosines.shape[1] :]  # gemma4's last layers run on the last position alone
        above = cosines.masked_fill(~question, 0).sum(1) > self.threshold * question.sum(1)
        choice.settled = choice.settled | (choice.above & above)
        choice.above = above
        layer = index + 1
        if layer in self.at and layer >= choice.first and choice.settled.all():
            self.choose(choice, layer)

    def choose(self, choice: Choice, layer: int) -> None:
        """Let the visual tokens leave before `layer`, the next one."""
        forward = choice.forward
        assert forward.visual is not None
        forward.stages[layer] = LayerInputs(forward.visual.shape[1], forward.past_length, self.is_flash)
        self.prune(forward, layer, forward.visual)
        self.chosen[threading.get_ident()] = layer
        del self.choices[threading.get_ident()]

    def end(self, module: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        choice = self.choices.pop(threading.get_ident(), None)
        super().end(module, args, kwargs, output)
        if output is not None and choice is not None and choice.measured < len(self.attending):
            raise self.unmeasured(choice)

    def unmeasured(self, choice: Choice) -> RuntimeError:
        return RuntimeError(
            f"The attention of decoder layer {self.attending[choice.measured]} of this {type(self.model).__name__} "
            "doesn't run through transformers' attention interface, so it can't choose a layer by it. Name a layer."
        )
