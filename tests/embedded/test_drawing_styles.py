import random

import numpy as np
import pytest
from PIL import Image

from vtw_demo.embedded.drawing_styles import (
    PAINT_COLOURS,
    PLAIN,
    DrawingStyle,
    badly_kept,
    drawn_colour,
    drawn_outline,
    random_style,
)
from vtw_demo.embedded.scenes import COLOURS, Scene, SceneObject, draw

SQUARE = [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
ONE_SQUARE = Scene(
    (SceneObject("square", "red", "large", 0.5, 0.5, 0.33),), ((255, 255, 255), (255, 255, 255)), "plain", 0
)


def covered(picture: Image.Image) -> np.ndarray:
    return np.abs(np.asarray(picture).astype(int) - 255).sum(-1) > 60


def test_a_plain_style_changes_nothing():
    assert drawn_outline(SQUARE, PLAIN, 0) == SQUARE
    assert drawn_colour("red", COLOURS["red"], PLAIN, 0) == COLOURS["red"]
    assert draw(ONE_SQUARE).tobytes() == draw(ONE_SQUARE, style=PLAIN).tobytes()


def test_a_stretched_object_is_narrower_and_as_tall():
    plain, narrow = covered(draw(ONE_SQUARE)), covered(draw(ONE_SQUARE, style=DrawingStyle(stretch=(0.5, 1.0))))
    assert narrow.any(0).sum() == pytest.approx(plain.any(0).sum() / 2, abs=2)
    assert narrow.any(1).sum() == plain.any(1).sum()


def test_an_unsteady_outline_stays_near():
    style = DrawingStyle(unsteadiness=0.05, seed=3)
    strayed = np.array(drawn_outline(SQUARE, style, 1))
    distance = np.abs(strayed).max(axis=1)
    assert 0 < np.abs(distance - 0.8).max() < 0.4
    assert drawn_outline(SQUARE, style, 1) == drawn_outline(SQUARE, style, 1) != drawn_outline(SQUARE, style, 2)


def test_a_contour_is_dark():
    dark = np.asarray(draw(ONE_SQUARE, style=DrawingStyle(contour=0.1))).sum(-1) < 60
    assert dark.any()
    assert not (np.asarray(draw(ONE_SQUARE)).sum(-1) < 60).any()


def test_paint_colours_have_the_scenes_names():
    assert PAINT_COLOURS.keys() == COLOURS.keys()
    for name, hues in PAINT_COLOURS.items():
        assert drawn_colour(name, COLOURS[name], DrawingStyle(paint_colours=True), 0) in hues


def test_random_styles_can_be_drawn_and_kept_badly():
    generator = random.Random(0)
    for _ in range(40):
        kept = badly_kept(draw(ONE_SQUARE, style=random_style(generator)), generator)
        assert (kept.size, kept.mode) == ((224, 224), "RGB")
        assert covered(kept).sum() > 500
