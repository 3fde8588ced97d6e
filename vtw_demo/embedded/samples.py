"""Training samples: pictures with the questions asked about them, as tensors."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from vtw_demo.embedded.architecture import PATCH_SIDE, PICTURE_SIDE, VISUAL_TOKENS
from vtw_demo.embedded.scenes import CHARACTERS, COLOURS, PLACES, SHAPES, SIZES, Scene

IGNORED = -100
# What the tower learns to name at each patch; class 0 of each is "nothing here".
PATCH_CLASSES = {"shape": SHAPES, "colour": tuple(COLOURS), "size": SIZES, "character": tuple(CHARACTERS)}


@dataclass(frozen=True)
class PackedSamples:
    """Pictures, each followed by as many question-answer turns as fit.

    Every turn sees its picture and itself, and counts its positions from the picture's end: to the model it is
    a conversation of its own. So one picture's visual tokens serve many questions.

    Shapes: pixel_values (batch, 3, side, side); input_ids, position_ids, labels (batch, sequence), labels being
    the next token at answer positions and -100 elsewhere; turns (batch, sequence), the turn's number from 0, -1
    before the first turn, -2 at padding; kinds: each turn's kind of question, by row.
    """

    pixel_values: torch.Tensor
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    turns: torch.Tensor
    kinds: tuple[tuple[str, ...], ...]

    def to(self, device: torch.device | str) -> PackedSamples:
        return PackedSamples(
            self.pixel_values.to(device),
            self.input_ids.to(device),
            self.position_ids.to(device),
            self.labels.to(device),
            self.turns.to(device),
            self.kinds,
        )

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
    pictures: Sequence[Image.Image],
    asked: Sequence[Sequence[tuple[str, str, str]]],
    length: int,
) -> PackedSamples:
    """Rows of `length` positions; `asked` holds (kind, question, answer) for each picture; what doesn't fit is left."""
    tokenizer = processor.tokenizer
    before = tokenizer.encode("<|im_start|>user\n") + [processor.image_token_id] * VISUAL_TOKENS
    shape = (len(pictures), length)
    input_ids = np.full(shape, tokenizer.pad_token_id)
    position_ids, labels = np.zeros(shape, np.int64), np.full(shape, IGNORED)
    turns = np.full(shape, -2)
    input_ids[:, : len(before)], turns[:, : len(before)] = before, -1
    position_ids[:, : len(before)] = np.arange(len(before))
    kinds: list[tuple[str, ...]] = []
    for row, questions in enumerate(asked):
        start = len(before)
        row_kinds: list[str] = []
        for kind, question, answer in questions:
            prompt = [*tokenizer.encode(question), tokenizer.eos_token_id]
            reply = [*tokenizer.encode(answer), tokenizer.eos_token_id]
            end = start + len(prompt) + len(reply)
            if end > length:
                break
            input_ids[row, start:end] = prompt + reply
            position_ids[row, start:end] = np.arange(len(before), len(before) + end - start)
            labels[row, start + len(prompt) - 1 : end - 1] = reply
            turns[row, start:end] = len(row_kinds)
            row_kinds.append(kind)
            start = end
        kinds.append(tuple(row_kinds))
    as_tensor = torch.from_numpy
    return PackedSamples(
        pixels(pictures),
        as_tensor(input_ids),
        as_tensor(position_ids),
        as_tensor(labels),
        as_tensor(turns),
        tuple(kinds),
    )


def patch_labels(scenes: Sequence[Scene]) -> dict[str, torch.Tensor]:
    """For each property, its class at every patch: (batch, visual tokens), 0 where there is no object."""
    side = PICTURE_SIDE // PATCH_SIDE
    down, across = (np.mgrid[0:side, 0:side] + 0.5) / side
    labels = {name: np.zeros((len(scenes), side, side), np.int64) for name in PATCH_CLASSES}
    for row, scene in enumerate(scenes):
        for item in scene.objects:
            inside = (across - item.x) ** 2 + (down - item.y) ** 2 < (0.42 * item.diameter) ** 2
            labels["shape"][row][inside] = 1 + SHAPES.index(item.shape)
            labels["colour"][row][inside] = 1 + list(COLOURS).index(item.colour)
            labels["size"][row][inside] = 1 + SIZES.index(item.size)
            labels["character"][row][inside] = 1 + CHARACTERS.index(item.character) if item.character else 0
    return {name: torch.from_numpy(value.reshape(len(scenes), -1)) for name, value in labels.items()}


def patch_words(scenes: Sequence[Scene], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """How often each token of the vocabulary names what is at a patch: (batch, visual tokens, vocabulary).

    A patch with an object on it is named by colour, shape, size, character and place, each both as a word that
    opens an answer and as one within a sentence.
    """
    covered = patch_labels(scenes)["shape"] > 0
    side = PICTURE_SIDE // PATCH_SIDE
    names = torch.zeros(*covered.shape, len(tokenizer), device=covered.device)
    classes = patch_labels(scenes)
    for row in range(len(scenes)):
        for patch in covered[row].nonzero().flatten().tolist():
            words = [c[classes[n][row, patch] - 1] for n, c in PATCH_CLASSES.items() if classes[n][row, patch] > 0]
            place = PLACES[min(2, (patch // side) * 3 // side)][min(2, (patch % side) * 3 // side)]
            for word in (*words, *place.split()):
                for token in (*tokenizer.encode(word), *tokenizer.encode(f" {word}")):
                    names[row, patch, token] += 1
    return names


def shuffled(generator: random.Random, questions: Sequence[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """Questions of easy-vqa in random order, as `pack` takes them."""
    return [("easy-vqa", text, answer) for text, answer in generator.sample(questions, len(questions))]
