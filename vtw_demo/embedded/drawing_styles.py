"""How a scene is drawn otherwise than plainly: squeezed, by an unsteady hand, in other hues, badly stored."""

import io
import math
import random
from dataclasses import dataclass

from PIL import Image, ImageEnhance, ImageFilter

from vtw_demo.files import data_beside

Point = tuple[float, float]
Colour = tuple[int, int, int]

_COLOURS = data_beside(__file__, "colours.json")
COLOURS: dict[str, Colour] = {name: tuple(of["drawn"]) for name, of in _COLOURS.items()}
# The colours of the same names in paint programs (the web's names).
PAINT_COLOURS: dict[str, list[Colour]] = {name: [*map(tuple, of["painted"])] for name, of in _COLOURS.items()}


@dataclass(frozen=True)
class DrawingStyle:
    """How the objects of one picture are drawn.

    `stretch`: width and height as shares of the plain ones: what a picture that is not square looks like once it is
    scaled to a square. `unsteadiness`: how far an outline strays, `contour`: the width of a dark line around each
    object, as shares of the radius. `paint_colours`: a paint program's hues; `hue_noise`: how far a channel moves.
    """

    stretch: tuple[float, float] = (1.0, 1.0)
    unsteadiness: float = 0.0
    contour: float = 0.0
    paint_colours: bool = False
    hue_noise: int = 0
    seed: int = 0


PLAIN = DrawingStyle()


def random_style(generator: random.Random) -> DrawingStyle:
    """Each deviation in a part of the pictures only, so that many have one or two of them."""
    squeezed = generator.uniform(0.55, 1.0) if generator.random() < 0.5 else 1.0
    return DrawingStyle(
        (squeezed, 1.0) if generator.random() < 0.6 else (1.0, squeezed),
        generator.uniform(0.01, 0.07) if generator.random() < 0.4 else 0.0,
        generator.uniform(0.04, 0.12) if generator.random() < 0.2 else 0.0,
        generator.random() < 0.4,
        generator.randint(4, 20) if generator.random() < 0.4 else 0,
        generator.getrandbits(31),
    )


def drawn_outline(corners: list[Point], style: DrawingStyle, number: int) -> list[Point]:
    """The outline of object `number`, given round (0, 0), as the style's hand draws it."""
    across, down = style.stretch
    if style.unsteadiness:
        hand = random.Random(style.seed + number)
        waves = [(f, hand.gauss(0, 1) / f, hand.uniform(0, 2 * math.pi)) for f in (1, 2, 3, 5)]
        shifts = [(hand.gauss(0, 1), hand.gauss(0, 1)) for _ in corners]
        strayed = []
        for (x, y), shift, (next_x, next_y) in zip(corners, shifts, corners[1:] + corners[:1], strict=True):
            # Only outlines with few corners have sides to draw; a curve's corners are too near for shifts of their own.
            steps, own = (12, 0.5) if len(corners) <= 10 else (1, 0.0)
            for step in range(steps):
                share = step / steps
                px, py = x + share * (next_x - x), y + share * (next_y - y)
                turn = math.atan2(py, px)
                reach = 1 + style.unsteadiness * sum(size * math.sin(f * turn + phase) for f, size, phase in waves)
                near = (1 - share) * own * style.unsteadiness
                strayed.append((px * reach + near * shift[0], py * reach + near * shift[1]))
        corners = strayed
    return [(x * across, y * down) for x, y in corners]


def drawn_colour(name: str, plain: Colour, style: DrawingStyle, number: int) -> Colour:
    """The colour of object `number`, whose name is `name`."""
    hand = random.Random(style.seed + 100 + number)
    colour = hand.choice(PAINT_COLOURS[name]) if style.paint_colours else plain
    noise = [hand.randint(-style.hue_noise, style.hue_noise) for _ in range(3)]
    return tuple(max(0, min(255, c + n)) for c, n in zip(colour, noise, strict=True))  # type: ignore[return-value]


def badly_kept(picture: Image.Image, generator: random.Random) -> Image.Image:
    """The picture after what pictures go through: scaled, turned by a degree or two, blurred, brightened, JPEG."""
    size = picture.size
    if generator.random() < 0.4:
        small = generator.randint(size[0] // 2, size[0])
        picture = picture.resize((small, small), Image.Resampling.BILINEAR).resize(size, Image.Resampling.BICUBIC)
    if generator.random() < 0.3:
        edge = picture.getpixel((0, 0))
        turn = generator.uniform(-2, 2)
        picture = picture.rotate(turn, Image.Resampling.BILINEAR, fillcolor=edge)  # type: ignore[arg-type]
    if generator.random() < 0.2:
        picture = picture.filter(ImageFilter.GaussianBlur(generator.uniform(0.3, 1.2)))
    if generator.random() < 0.3:
        picture = ImageEnhance.Brightness(picture).enhance(generator.uniform(0.85, 1.1))
    if generator.random() < 0.3:
        picture = ImageEnhance.Contrast(picture).enhance(generator.uniform(0.85, 1.15))
    if generator.random() < 0.5:
        stored = io.BytesIO()
        picture.save(stored, "JPEG", quality=generator.randint(25, 95))
        picture = Image.open(stored).convert("RGB")
    return picture
