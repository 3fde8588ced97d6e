"""The visual code: what each patch's visual token is to say, as a sum of fixed vectors.

The tower and projector are trained to write it and the decoder to read it, each apart from the other and therefore
fast, before both are trained together on nothing but answers.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from vtw_demo.embedded.scenes import CHARACTERS, COLOURS, PLACES, SHAPES, SIZES, Scene

# An object's properties, by their names in SceneObject.
NAMES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "size": SIZES,
    "character": tuple(CHARACTERS),
    "place": tuple(place for row in PLACES for place in row),
}
NAMED = [(name, value) for name, values in NAMES.items() for value in values]
CODE_OF = {named: code for code, named in enumerate(NAMED)}
# The codes of each property's values.
CLASSES = {name: slice(CODE_OF[name, values[0]], CODE_OF[name, values[-1]] + 1) for name, values in NAMES.items()}
# Besides the names: a patch with nothing on it, and an object's middle, by which objects can be counted.
NOTHING, MIDDLE = len(NAMED), len(NAMED) + 1
# Sines and cosines of the patch's own place, and plain coordinates of the patch and of the object on it.
WAVES = (0.5, 1.0, 2.0)
CODES = len(NAMED) + 2 + 4 * len(WAVES) + 4


def codebook(width: int) -> torch.Tensor:
    """One vector of length 1 for each code, at right angles to each other: (codes, width)."""
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.linalg.qr(torch.randn(width, CODES, generator=generator, device="cpu"))[0].T.contiguous()


@torch.no_grad()
def word_codebook(words: torch.Tensor, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """The visual code in the language model's terms: (codes, width), at right angles to each other.

    A code that names something lies as near as it can to the embedding of its words, so that the decoder meets
    words it knows; the others are random.
    """
    centred = words.detach().cpu().float() - words.detach().cpu().float().mean(0)
    wanted = codebook(words.shape[1])
    for code, (_, value) in enumerate(NAMED):
        wanted[code] = nn.functional.normalize(centred[tokenizer.encode(f" {value}")].mean(0), dim=0)
    # The nearest matrix of which all rows are at right angles (the polar factor).
    left, _, right = torch.linalg.svd(wanted, full_matrices=False)
    return left @ right


def patch_contents(scenes: Sequence[Scene], side: int) -> torch.Tensor:
    """How much of each code the visual token of each patch is to hold, on a grid of `side` by `side` patches:
    (batch, patches, codes), on the default device."""
    down, across = (np.mgrid[0:side, 0:side] + 0.5) / side
    contents = np.zeros((len(scenes), side, side, CODES), np.float32)
    waves = [wave(2 * np.pi * f * axis) for axis in (down, across) for f in WAVES for wave in (np.sin, np.cos)]
    contents[..., MIDDLE + 1 : -4] = 0.5 * np.stack(waves, -1)
    contents[..., -4:-2] = 2 * np.stack([down - 0.5, across - 0.5], -1)
    contents[..., NOTHING] = 1.0
    for grid, scene in zip(contents, scenes, strict=True):
        for item in scene.objects:
            distance = (across - item.x) ** 2 + (down - item.y) ** 2
            middle = distance == distance.min()
            inside = (distance < (0.42 * item.diameter) ** 2) | middle
            for name in NAMES:
                if (value := getattr(item, name)) is not None:
                    grid[inside, CODE_OF[name, value]] = 1.0
            grid[inside, NOTHING] = 0.0
            grid[middle, MIDDLE] = 1.0
            grid[inside, -2:] = 2 * (item.y - 0.5), 2 * (item.x - 0.5)
    return torch.tensor(contents).flatten(1, 2)


def code_loss(
    visual_tokens: torch.Tensor, contents: torch.Tensor, book: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """How far `visual_tokens`, (batch, patches, width), are from what they are to say: their squared distance from
    the code, and the cross entropy of each property's name read off them. And for each property, the share of the
    patches that have it whose token names it rightly."""
    # Empty patches are many and easy, and count a tenth.
    weight = torch.where(contents[..., NOTHING] == 0, 1.0, 0.1)
    squared = (visual_tokens - contents @ book).pow(2).sum(-1)
    total, right = (squared * weight).sum() / weight.sum(), {}
    # With a perfect token a right name's logit is this, all others' 0.
    sharpness = 8.0
    for name, codes in CLASSES.items():
        named = contents[..., codes].any(-1)
        if named.any():
            logits = sharpness * visual_tokens[named] @ book[codes].T
            classes = contents[named][:, codes].argmax(-1)
            total = total + nn.functional.cross_entropy(logits, classes)
            right[name] = (logits.argmax(-1) == classes).float().mean().item()
    return total, right
