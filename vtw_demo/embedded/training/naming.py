"""What the tower is trained on before anything answers: its tokens are to name what is at each patch.

A token names a property as a language model says a word: by how near it lies to the words' embeddings.
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
# A perfect token's logit of a right name; and how much a patch without the property counts, of which there are many.
SHARPNESS, ABSENT = 8.0, 0.1


@torch.no_grad()
def word_directions(words: torch.Tensor, tokenizer: PreTrainedTokenizerFast) -> dict[str, torch.Tensor]:
    """Of each property, a direction for each of its names, (names, width): from all words' mean to the name's."""
    centred = words.float() - words.float().mean(0)
    return {
        name: nn.functional.normalize(torch.stack([centred[tokenizer.encode(f" {v}")].mean(0) for v in values]), dim=1)
        for name, values in NAMES.items()
    }


def patch_names(scenes: Sequence[Scene], side: int) -> dict[str, torch.Tensor]:
    """Of each property, the number of the name at each patch, -1 where it has none: (batch, patches)."""
    down, across = (np.mgrid[0:side, 0:side] + 0.5) / side
    names = {name: np.full((len(scenes), side, side), -1) for name in NAMES}
    for row, scene in enumerate(scenes):
        for item in scene.objects:
            distance = (across - item.x) ** 2 + (down - item.y) ** 2
            inside = (distance < (0.42 * item.diameter) ** 2) | (distance == distance.min())
            for name, values in NAMES.items():
                if (value := getattr(item, name)) is not None:
                    names[name][row, inside] = values.index(value)
    return {name: torch.tensor(numbers).flatten(1) for name, numbers in names.items()}


def naming_loss(
    tokens: torch.Tensor, names: dict[str, torch.Tensor], directions: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[str, float]]:
    """How far `tokens`, (batch, patches, width), are from naming each property where it is and no name elsewhere; and
    of each, the share of its patches that name it rightly."""
    total, right = tokens.new_zeros(()), {}
    for name, numbers in names.items():
        # A name more: none.
        logits = nn.functional.pad(SHARPNESS * tokens @ directions[name].T, (0, 1), value=SHARPNESS / 2)
        absent = numbers < 0
        wanted = torch.where(absent, logits.shape[-1] - 1, numbers)
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        weight = torch.where(absent, ABSENT, 1.0).flatten()
        total = total + (losses * weight).sum() / weight.sum()
        right[name] = (logits.argmax(-1) == wanted)[~absent].float().mean().nan_to_num(1.0).item()
    return total, right
