"""The visual code: what each patch's visual token is to say, as a sum of fixed vectors.

The tower and projector are trained to write it and the decoder to read it, each apart from the other and therefore
fast, before both are trained together on nothing but answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import nn

from vtw_demo.embedded.scenes import CHARACTERS, COLOURS, PLACES, SHAPES, SIZES, Scene

NAMES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "size": SIZES,
    "character": tuple(CHARACTERS),
    "place": tuple(place for row in PLACES for place in row),
}
# Besides the names: a patch with nothing on it, and an object's middle, by which objects can be counted.
FIRST_FLAG = sum(map(len, NAMES.values()))
NOTHING, MIDDLE = FIRST_FLAG, FIRST_FLAG + 1
# Sines and cosines of the patch's own place, and plain coordinates of the patch and of the object on it.
WAVES = (0.5, 1.0, 2.0)
CODES = FIRST_FLAG + 2 + 4 * len(WAVES) + 4
# The codes of each property's classes.
CLASSES = {
    name: slice(end - len(values), end)
    for (name, values), end in zip(NAMES.items(), accumulate(map(len, NAMES.values())), strict=True)
}


@dataclass(frozen=True)
class PatchContents:
    """What is at each patch of a grid. `names` holds each property's class, (batch, patches), -1 where there is none;
    `weights` how much of each code the patch's token is to hold, (batch, patches, codes)."""

    names: dict[str, torch.Tensor]
    weights: torch.Tensor

    def to(self, device: torch.device | str) -> PatchContents:
        return PatchContents({name: c.to(device) for name, c in self.names.items()}, self.weights.to(device))


def codebook(width: int, seed: int = 0) -> torch.Tensor:
    """One vector of length 1 for each code, at right angles to each other: (codes, width)."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, CODES, generator=generator, device="cpu"))[0].T.contiguous()


def code_of(name: str, value: str) -> int:
    """The number of the code that says that a property called `name` is `value`."""
    return CLASSES[name].start + NAMES[name].index(value)


def patch_contents(scenes: Sequence[Scene], side: int) -> PatchContents:
    """What is at each patch of a grid of `side` by `side` patches."""
    down, across = (np.mgrid[0:side, 0:side] + 0.5) / side
    names = {name: np.full((len(scenes), side, side), -1) for name in NAMES}
    weights = np.zeros((len(scenes), side, side, CODES), np.float32)
    waves = [wave(2 * np.pi * f * axis) for axis in (down, across) for f in WAVES for wave in (np.sin, np.cos)]
    weights[..., MIDDLE + 1 : -4] = 0.5 * np.stack(waves, -1)
    weights[..., -4:-2] = 2 * np.stack([down - 0.5, across - 0.5], -1)
    for row, scene in enumerate(scenes):
        for item in scene.objects:
            distance = (across - item.x) ** 2 + (down - item.y) ** 2
            middle = distance == distance.min()
            inside = (distance < (0.42 * item.diameter) ** 2) | middle
            classes = {"shape": item.shape, "colour": item.colour, "size": item.size, "place": item.place}
            classes |= {"character": item.character} if item.character else {}
            for name, value in classes.items():
                names[name][row][inside] = NAMES[name].index(value)
                weights[row, inside, code_of(name, value)] = 1.0
            weights[row, middle, MIDDLE] = 1.0
            weights[row, inside, -2:] = 2 * (item.y - 0.5), 2 * (item.x - 0.5)
        weights[row, names["shape"][row] < 0, NOTHING] = 1.0
    flat = {name: torch.from_numpy(c.reshape(len(scenes), -1)) for name, c in names.items()}
    return PatchContents(flat, torch.from_numpy(weights.reshape(len(scenes), side * side, CODES)))


def code_loss(visual_tokens: torch.Tensor, contents: PatchContents, book: torch.Tensor) -> torch.Tensor:
    """How far `visual_tokens`, (batch, patches, width), are from what they are to say: their squared distance from
    the code, and the cross entropy of each property's name read off them."""
    covered = contents.names["shape"] >= 0
    # Empty patches are many and easy, and count a tenth.
    weight = torch.where(covered, 1.0, 0.1)
    squared = (visual_tokens - contents.weights @ book).pow(2).sum(-1)
    total = (squared * weight).sum() / weight.sum()
    # With a perfect token a right name's logit is this, all others' 0.
    sharpness = 8.0
    for name, codes in CLASSES.items():
        named = contents.names[name] >= 0
        if named.any():
            logits = sharpness * visual_tokens[named] @ book[codes].T
            total = total + nn.functional.cross_entropy(logits, contents.names[name][named])
    return total


def names_right(visual_tokens: torch.Tensor, contents: PatchContents, book: torch.Tensor) -> dict[str, float]:
    """For each property, the share of the patches that have it whose token names it rightly."""
    right = {}
    for name, codes in CLASSES.items():
        named = contents.names[name] >= 0
        guessed = (visual_tokens[named] @ book[codes].T).argmax(-1)
        right[name] = (guessed == contents.names[name][named]).float().mean().item()
    return right
