"""Pictures that are no drawn scenes: those that come with scikit-image and gradio, empty backgrounds, noise.

To any question about one, the model is to say that it knows drawn shapes only.
"""

import random
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import skimage
from PIL import Image

from vtw_demo.embedded.scenes import draw_background, random_scene
from vtw_demo.files import data_beside

MODEST_ANSWER = "I see no drawn shapes, and they are all I know."
# Those of scikit-image's and gradio's pictures that show things, textures or people; all of scikit-image's are free to
# use (its data/README.txt). TESTED_PHOTOS are never trained on.
_PHOTOS: dict[str, list[str]] = data_beside(__file__, "unknown_pictures.json")
TRAINED_PHOTOS, TESTED_PHOTOS = _PHOTOS["trained"], _PHOTOS["tested"]


def photos(names: Sequence[str] = TRAINED_PHOTOS) -> list[Image.Image]:
    # Found without importing gradio, which takes seconds.
    of_gradio = Path(str(distribution("gradio").locate_file("gradio/media_assets/images")))
    folders = (Path(skimage.__file__).parent / "data", of_gradio)
    found = [next(folder / name for folder in folders if (folder / name).exists()) for name in names]
    return [Image.open(path).convert("RGB") for path in found]


def part_of_photo(photo: Image.Image, generator: random.Random, side: int = 224) -> Image.Image:
    """A random part of the photo as a square picture, in half of the cases mirrored."""
    share = generator.uniform(0.3, 1.0)
    width, height = (round(share * length) for length in photo.size)
    left, top = generator.randint(0, photo.width - width), generator.randint(0, photo.height - height)
    picture = photo.crop((left, top, left + width, top + height)).resize((side, side), Image.Resampling.BICUBIC)
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if generator.random() < 0.5 else picture


def recoloured(picture: Image.Image, generator: random.Random) -> Image.Image:
    """The picture with its colours changed about and each made lighter or darker."""
    bands = list(picture.split())
    generator.shuffle(bands)
    gammas = [2.0 ** generator.uniform(-1, 1) for _ in bands]
    curves = [[round(255 * (value / 255) ** gamma) for value in range(256)] for gamma in gammas]
    return Image.merge("RGB", [band.point(curve) for band, curve in zip(bands, curves, strict=True)])


def unknown_picture(shown: Sequence[Image.Image], generator: random.Random, side: int = 224) -> Image.Image:
    """A part of one of the photos, half of them in other colours, or a picture with nothing on it, or noise."""
    what = generator.random()
    if what < 0.75:
        part = part_of_photo(generator.choice(shown), generator, side)
        return recoloured(part, generator) if generator.random() < 0.5 else part
    if what < 0.87:
        return draw_background(random_scene(generator, 1), side)
    grains, noise = generator.choice((2, 4, 9, 20, 60)), np.random.default_rng(generator.getrandbits(31))
    grain = Image.fromarray(noise.integers(0, 256, (grains, grains, 3), dtype=np.uint8))
    return grain.resize((side, side), Image.Resampling.BICUBIC)
