"""Pictures and the questions asked about them as tensors, many questions to a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from transformers import LlavaProcessor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from vtw_demo.embedded.training.architecture import GRID_SIDE, PICTURE_SIDE

IGNORED = -100


@dataclass(frozen=True)
class PackedSamples:
    """The tokens of pictures, each followed by as many question-answer turns as fit.

    Every turn sees its picture and itself, and counts its positions from the picture's end: to the model it is
    a conversation of its own. So one picture's visual tokens serve many questions.

    Shapes: input_ids, position_ids, labels (batch, sequence), labels being
    the next token at answer positions and -100 elsewhere; turns (batch, sequence), the turn's number from 0, -1
    before the first turn, -2 at padding; kinds: each turn's kind of question, by row.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    turns: torch.Tensor
    kinds: tuple[tuple[str, ...], ...]

    def to(self, device: torch.device | str) -> PackedSamples:
        tensors = {name: value.to(device) for name, value in vars(self).items() if name != "kinds"}
        return replace(self, **tensors)

    def attention_mask(self) -> torch.Tensor:
        """True where a query (row) may see a key (column): (batch, 1, sequence, sequence)."""
        length = self.input_ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.turns.device).tril()
        query, key = self.turns[:, :, None], self.turns[:, None, :]
        return (causal & ((key == -1) | (query == key)))[:, None]


def pixels(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """Pictures as the processor's image processor gives them: (batch, 3, side, side)."""
    size = (PICTURE_SIDE, PICTURE_SIDE)
    scaled = [p if p.size == size else p.resize(size, Image.Resampling.BICUBIC) for p in pictures]
    raw = np.stack([np.asarray(picture) for picture in scaled]).astype(np.float32) / 255
    normalised = (raw - np.array(OPENAI_CLIP_MEAN, np.float32)) / np.array(OPENAI_CLIP_STD, np.float32)
    return torch.from_numpy(normalised).permute(0, 3, 1, 2).contiguous()


def pack(
    processor: LlavaProcessor,
    asked: Sequence[Sequence[tuple[str, str, str]]],
    length: int,
    grid_side: int = GRID_SIDE,
) -> PackedSamples:
    """Rows of `length` positions; `asked` holds (kind, question, answer) for each picture; a turn that
    doesn't fit is left out.

    A grid coarser than the model's own has fewer visual tokens; each keeps the position that the token of the same
    place has on the model's grid, and the text begins where it always does.
    """
    tokenizer, spacing = processor.tokenizer, GRID_SIDE // grid_side
    opening = tokenizer.encode("<|im_start|>user\n")
    before = opening + [processor.image_token_id] * grid_side**2
    grid = spacing * (GRID_SIDE * np.arange(grid_side)[:, None] + np.arange(grid_side)).flatten()
    text_start = len(opening) + GRID_SIDE**2
    shape = (len(asked), length)
    input_ids, position_ids = np.full(shape, tokenizer.pad_token_id), np.zeros(shape, np.int64)
    labels, turns = np.full(shape, IGNORED), np.full(shape, -2)
    input_ids[:, : len(before)], turns[:, : len(before)] = before, -1
    position_ids[:, : len(before)] = [*range(len(opening)), *(len(opening) + grid)]
    kinds: list[tuple[str, ...]] = []
    for row, questions in enumerate(asked):
        start = len(before)
        row_kinds: list[str] = []
        for kind, question, answer in questions:
            prompt = [*tokenizer.encode(question), tokenizer.eos_token_id]
            reply = [*tokenizer.encode(answer), tokenizer.eos_token_id]
            end = start + len(prompt) + len(reply)
            if end > length:
                continue
            input_ids[row, start:end] = prompt + reply
            position_ids[row, start:end] = np.arange(text_start, text_start + end - start)
            labels[row, start + len(prompt) - 1 : end - 1] = reply
            turns[row, start:end] = len(row_kinds)
            row_kinds.append(kind)
            start = end
        kinds.append(tuple(row_kinds))
    return PackedSamples(
        torch.from_numpy(input_ids),
        torch.from_numpy(position_ids),
        torch.from_numpy(labels),
        torch.from_numpy(turns),
        tuple(kinds),
    )
