"""A further question about the same picture, in the same conversation: what withdrawal's memory is good for."""

from dataclasses import dataclass
from typing import Any

from vtw_demo.comparison.timed_generate import Run
from vtw_demo.errors import UserError
from vtw_demo.formats import PlainData
from vtw_demo.models.prompt import Prompt
from vtw_demo.models.vision_language_model import VisionLanguageModel


@dataclass(frozen=True)
class Turn(PlainData):
    """An earlier question with the token ids of both runs' answers, with or without the end's."""

    question: str
    full: tuple[int, ...]
    withdrawn: tuple[int, ...]


@dataclass(frozen=True)
class FollowUp(PlainData):
    """What both runs say to a further question, each in its own conversation.

    - `full` and `withdrawn` go on with the KV cache that their own answer before has left: their prefill runs on the
      further tokens alone. In layers from K on the withdrawn one's cache has never held the picture.
    - `fresh`: the withdrawn run's conversation, read again from its first token, picture and all, without withdrawal.
    - `tokens`: of the withdrawn run's conversation with this question; `further_tokens`: those that its cache lacked.
    """

    history: tuple[Turn, ...]
    question: str
    layer: int
    layers: int
    tokens: int
    further_tokens: int
    full: Run
    withdrawn: Run
    fresh: Run

    @property
    def is_enough(self) -> bool:
        """Whether the withdrawn run, with what it has kept, says what the model says that sees the picture again."""
        return self.withdrawn.answer.split() == self.fresh.answer.split()

    @property
    def same_history(self) -> bool:
        return all(turn.full == turn.withdrawn for turn in self.history)

    @property
    def turn(self) -> Turn:
        """This question as one of the history of the next."""
        return Turn(self.question, self.full.tokens, self.withdrawn.tokens)


def check_history(given: Any) -> tuple[Turn, ...]:
    history = tuple(given)
    if not history or not all(isinstance(turn, Turn) for turn in history):
        raise UserError(
            f"The history must be an earlier Comparison, or a list of at least one Turn; this is {given!r:.80}."
        )
    return history


def conversations(
    vlm: VisionLanguageModel, prompt: Prompt, history: tuple[Turn, ...], question: str
) -> tuple[Prompt, Prompt]:
    """The full run's and the withdrawn run's, from the prompt of the history's first question on."""
    full = withdrawn = prompt
    for turn, following in zip(history, [*(turn.question for turn in history[1:]), question], strict=True):
        full = vlm.continued(full, turn.full, following)
        withdrawn = vlm.continued(withdrawn, turn.withdrawn, following)
    return full, withdrawn
