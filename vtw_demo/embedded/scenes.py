"""Random scenes: what is in a picture, and the picture drawn from it."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vtw_demo.embedded.drawing_styles import COLOURS, PLAIN, Colour, DrawingStyle, drawn_colour, drawn_outline

SHAPES = ("circle", "square", "triangle", "star", "heart")
SIZES = ("small", "large")
BACKGROUND_KINDS = ("plain", "gradient", "noise", "stripes")
# Those that stay apart when they are drawn small: no O beside 0, no I beside 1, and so on.
CHARACTERS = "234579AEHKTX"
# Shapes with room for a character.
WRITTEN_SHAPES = ("circle", "square", "heart")
PLACES: tuple[tuple[str, ...], ...] = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
# Diameters as shares of the picture's side. The gap between them makes "small" and "large" plain to see.
DIAMETERS: dict[str, tuple[float, float]] = {"small": (0.15, 0.20), "large": (0.29, 0.35)}
# Centres keep this far from the lines between the nine places, so that a place is never a matter of opinion.
PLACE_MARGIN = 0.025
MAXIMUM_OBJECTS = 6


@dataclass(frozen=True)
class SceneObject:
    """One shape: `x`, `y` are its centre and `diameter` its extent, as shares of the picture's side."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    diameter: float
    angle: float = 0.0
    character: str | None = None

    @property
    def place(self) -> str:
        return PLACES[min(2, int(self.y * 3))][min(2, int(self.x * 3))]


@dataclass(frozen=True)
class Scene:
    """Objects on a background. `seed` fixes the background's noise, so that a scene is drawn alike each time."""

    objects: tuple[SceneObject, ...]
    background: tuple[Colour, Colour]
    background_kind: str
    seed: int


def random_scene(generator: random.Random, objects: int, colours: Sequence[str] = tuple(COLOURS)) -> Scene:
    """A scene of `objects` shapes in `colours` that don't overlap and differ from each other in colour or shape."""
    assert 1 <= objects <= min(MAXIMUM_OBJECTS, len(colours) * len(SHAPES))
    while True:
        base, other = _background_colours(generator)
        placed: list[SceneObject] = []
        for _ in range(60 * objects):
            candidate = _random_object(generator, colours, base, other)
            if candidate is not None and all(_compatible(candidate, o) for o in placed):
                placed.append(candidate)
                if len(placed) == objects:
                    kind = generator.choice(BACKGROUND_KINDS)
                    return Scene(tuple(placed), (base, other), kind, generator.getrandbits(31))


def draw(scene: Scene, side: int = 224, style: DrawingStyle = PLAIN) -> Image.Image:
    """The scene as a square RGB picture of `side` pixels."""
    canvas = draw_background(scene, side).resize((2 * side, 2 * side), Image.Resampling.NEAREST)
    for number, item in enumerate(scene.objects):
        _draw_object(canvas, item, style, number)
    return canvas.resize((side, side), Image.Resampling.BOX)


def _background_colours(generator: random.Random) -> tuple[Colour, Colour]:
    lightness = (190, 255) if generator.random() < 0.7 else (20, 235)
    base = tuple(generator.randint(*lightness) for _ in range(3))
    other = tuple(max(0, min(255, channel + generator.randint(-30, 30))) for channel in base)
    return base, other  # type: ignore[return-value]


def _random_object(generator: random.Random, colours: Sequence[str], base: Colour, other: Colour) -> SceneObject | None:
    colour = generator.choice(colours)
    if min(math.dist(COLOURS[colour], base), math.dist(COLOURS[colour], other)) < 100:
        return None
    size = generator.choice(SIZES)
    diameter = generator.uniform(*DIAMETERS[size])
    half = diameter / 2 + 0.01
    x, y = generator.uniform(half, 1 - half), generator.uniform(half, 1 - half)
    if any(abs(value - line) < PLACE_MARGIN for value in (x, y) for line in (1 / 3, 2 / 3)):
        return None
    shape = generator.choice(SHAPES)
    written = size == "large" and shape in WRITTEN_SHAPES and generator.random() < 0.5
    character = generator.choice(CHARACTERS) if written else None
    return SceneObject(shape, colour, size, x, y, diameter, generator.uniform(-8, 8), character)


def _compatible(a: SceneObject, b: SceneObject) -> bool:
    apart = math.dist((a.x, a.y), (b.x, b.y)) > (a.diameter + b.diameter) / 2 + 0.02
    return apart and (a.colour, a.shape) != (b.colour, b.shape)


def draw_background(scene: Scene, side: int) -> Image.Image:
    """The scene's background alone, a square RGB picture of `side` pixels."""
    base, other = (np.array(colour, dtype=np.float32) for colour in scene.background)
    noise = np.random.default_rng(scene.seed)
    down, across = np.mgrid[0:side, 0:side].astype(np.float32) / side
    share = np.zeros((side, side), np.float32)
    if scene.background_kind == "gradient":
        turn = noise.uniform(0, 2 * np.pi)
        share = (np.cos(turn) * (across - 0.5) + np.sin(turn) * (down - 0.5) + 0.75) / 1.5
    elif scene.background_kind == "stripes":
        turn, period = noise.uniform(0, np.pi), noise.uniform(0.05, 0.2)
        share = ((np.cos(turn) * across + np.sin(turn) * down) % period > period / 2).astype(np.float32)
    pixels = base * (1 - share[..., None]) + other * share[..., None]
    if scene.background_kind == "noise":
        grains = side // 8 + 1
        speckle = noise.normal(0, noise.uniform(5, 16), (grains, grains, 3)).astype(np.float32)
        pixels = pixels + speckle.repeat(8, axis=0).repeat(8, axis=1)[:side, :side]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _outline(shape: str) -> list[tuple[float, float]]:
    """The shape's corners round (0, 0), within a circle of radius 1; y points down."""
    if shape == "square":
        return [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    if shape == "triangle":
        return [(0, -0.95), (0.95, 0.75), (-0.95, 0.75)]
    if shape == "star":
        points = [((1.0, 0.42)[t % 2], t * math.pi / 5) for t in range(10)]
        return [(radius * math.sin(turn), -radius * math.cos(turn)) for radius, turn in points]
    turns = [step * math.pi / 32 for step in range(64)]
    if shape == "circle":
        return [(math.cos(t), math.sin(t)) for t in turns]
    heights = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turns]
    return [(math.sin(t) ** 3, -height / 17) for t, height in zip(turns, heights, strict=True)]


def _draw_object(canvas: Image.Image, item: SceneObject, style: DrawingStyle, number: int) -> None:
    cosine, sine = math.cos(math.radians(item.angle)), math.sin(math.radians(item.angle))
    x, y, radius = item.x * canvas.width, item.y * canvas.width, item.diameter / 2 * canvas.width
    turned = [(across * cosine - down * sine, across * sine + down * cosine) for across, down in _outline(item.shape)]
    corners = [(x + radius * across, y + radius * down) for across, down in drawn_outline(turned, style, number)]
    colour = drawn_colour(item.colour, COLOURS[item.colour], style, number)
    pencil = ImageDraw.Draw(canvas)
    pencil.polygon(corners, fill=colour)
    if style.contour:
        dark = (0, 0, 0) if sum(colour) > 120 else (90, 90, 90)
        pencil.line([*corners, corners[0]], fill=dark, width=max(1, round(style.contour * radius)), joint="curve")
    if item.character is not None:
        red, green, blue = colour
        ink = (0, 0, 0) if 0.3 * red + 0.59 * green + 0.11 * blue > 110 else (255, 255, 255)
        room = radius * min(style.stretch)
        height, rise = 1.1 * room, 0.1 * room if item.shape == "heart" else 0.0
        # Pillow's own font: it comes with the package, so that every machine draws the same scene.
        font, stroke = ImageFont.load_default(1.25 * height), max(1, round(0.03 * height))
        pencil.text((x, y - rise), item.character, ink, font, anchor="mm", stroke_width=stroke, stroke_fill=ink)
