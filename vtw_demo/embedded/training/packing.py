"""The questions asked about pictures as tensors, many questions to a picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import LlavaProcessor

from vtw_demo.embedded.training.model import GRID_SIDE
from vtw_demo.embedded.training.practice import Asked

IGNORED = -100


@dataclass(frozen=True)
class PackedSamples:
    """The tokens of pictures, each followed by as many question-answer turns as fit, on the default device.

    Every turn sees its picture and itself, and counts its positions from the picture's end: to the model it is a
    conversation of its own. So one picture's visual tokens serve many questions. Tensors: (batch, sequence).
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor  # the next token at answer positions, else -100
    turns: torch.Tensor  # the turn's number, -1 before the first, -2 at padding
    kinds: list[str]  # of question, by turn
    ends: list[tuple[int, int]]  # by turn, the row and position where its prompt ends

    def attention_mask(self) -> torch.Tensor:
        """True where a query (row) may see a key (column): (batch, 1, sequence, sequence)."""
        query, key = self.turns[:, :, None], self.turns[:, None, :]
        return ((key == -1) | (query == key)).tril()[:, None]


def pack(
    processor: LlavaProcessor, questions: Sequence[Sequence[Asked]], length: int, grid_side: int = GRID_SIDE
) -> PackedSamples:
    """Rows of `length` positions, one for each picture's questions; a turn that doesn't fit is left out.

    On a grid coarser than the model's own, each visual token keeps the position that the token of the same place has
    on the model's grid, and the text begins where it always does.
    """
    tokenizer, spacing = processor.tokenizer, GRID_SIDE // grid_side
    opening = tokenizer.encode("<|im_start|>user\n")
    before = opening + [processor.image_token_id] * grid_side**2
    grid = spacing * (GRID_SIDE * np.arange(grid_side)[:, None] + np.arange(grid_side)).flatten()
    text_start = len(opening) + GRID_SIDE**2
    shape = (len(questions), length)
    input_ids, position_ids = np.full(shape, tokenizer.pad_token_id), np.zeros(shape, np.int64)
    labels, turns = np.full(shape, IGNORED), np.full(shape, -2)
    input_ids[:, : len(before)], turns[:, : len(before)] = before, -1
    position_ids[:, : len(before)] = [*range(len(opening)), *(len(opening) + grid)]
    kinds, ends = list[str](), list[tuple[int, int]]()
    for row, turns_of_row in enumerate(questions):
        start = len(before)
        for kind, question, answer in turns_of_row:
            prompt = [*tokenizer.encode(question), tokenizer.eos_token_id]
            reply = [*tokenizer.encode(answer), tokenizer.eos_token_id]
            end = start + len(prompt) + len(reply)
            if end > length:
                continue
            input_ids[row, start:end] = prompt + reply
            position_ids[row, start:end] = np.arange(text_start, text_start + end - start)
            labels[row, start + len(prompt) - 1 : end - 1] = reply
            turns[row, start:end] = len(kinds)
            kinds.append(kind)
            ends.append((row, start + len(prompt) - 1))
            start = end
    tensors = {"input_ids": input_ids, "position_ids": position_ids, "labels": labels, "turns": turns}
    return PackedSamples(kinds=kinds, ends=ends, **{name: torch.tensor(array) for name, array in tensors.items()})
