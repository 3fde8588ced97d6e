"""Fifty prompts in free words, written by hand before the model's training ended; none was ever trained on."""

import json
import random
from pathlib import Path

from vtw_demo.embedded.scenes import DIAMETERS, PLACES, Scene, SceneObject

# By scene, its prompts with their answers.
_ASKED: list[tuple[str, list[tuple[str, str]]]] = json.loads(
    Path(__file__).with_suffix(".json").read_text(encoding="utf-8")
)
_PLACES = [place for row in PLACES for place in row]


def free_prompts() -> list[tuple[Scene, str, str]]:
    """Each prompt's scene, the prompt and the answer."""
    return [
        (read_scene(objects, seed), prompt, answer)
        for seed, (objects, prompts) in enumerate(_ASKED)
        for prompt, answer in prompts
    ]


def read_scene(objects: str, seed: int) -> Scene:
    """The scene that is written as "large red circle A top left, small blue star bottom"."""
    generator, placed = random.Random(seed), []
    for written in objects.split(", "):
        size, colour, shape, *rest = written.split()
        character = rest.pop(0) if len(rest[0]) == 1 else None
        row, column = divmod(_PLACES.index(" ".join(rest)), 3)
        x, y = ((2 * step + 1) / 6 + generator.uniform(-0.01, 0.01) for step in (column, row))
        # As small as its size may be: so it fits into its ninth of the picture.
        diameter = DIAMETERS[size][0] + generator.uniform(0, 0.01)
        placed.append(SceneObject(shape, colour, size, x, y, diameter, generator.uniform(-8, 8), character))
    return Scene(tuple(placed), ((172, 200, 204), (168, 196, 200)), "gradient", seed)
