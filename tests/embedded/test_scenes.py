import math
import random

import numpy as np
import pytest

from vtw_demo.embedded.scenes import COLOURS, MAXIMUM_OBJECTS, PLACES, SceneObject, draw, random_scene


@pytest.mark.parametrize("objects", range(1, MAXIMUM_OBJECTS + 1))
def test_objects_do_not_overlap_and_differ(objects):
    for seed in range(30):
        scene = random_scene(random.Random(seed), objects)
        assert len(scene.objects) == objects
        assert len({(o.colour, o.shape) for o in scene.objects}) == objects
        for first in scene.objects:
            for second in scene.objects:
                if first is not second:
                    gap = math.dist((first.x, first.y), (second.x, second.y))
                    assert gap > (first.diameter + second.diameter) / 2


def test_one_seed_one_picture():
    pictures = [np.asarray(draw(random_scene(random.Random(7), 3))) for _ in range(2)]
    assert np.array_equal(*pictures)


@pytest.mark.parametrize("side", [112, 224, 448])
def test_each_object_is_drawn_where_it_is_said_to_be(side):
    for seed in range(20):
        scene = random_scene(random.Random(seed), 3)
        pixels = np.asarray(draw(scene, side)).astype(int)
        assert pixels.shape == (side, side, 3)
        for item in scene.objects:
            if item.character is None:
                shown = pixels[int(item.y * side), int(item.x * side)]
                assert np.abs(shown - COLOURS[item.colour]).max() <= 3, item


def test_places_are_the_nine_parts_of_the_picture():
    for row, line in enumerate(PLACES):
        for column, place in enumerate(line):
            item = SceneObject("circle", "red", "small", (column + 0.5) / 3, (row + 0.5) / 3, 0.2)
            assert item.place == place


def test_a_scene_of_few_colours_has_no_others():
    for seed in range(20):
        scene = random_scene(random.Random(seed), 6, ("red", "blue"))
        assert {item.colour for item in scene.objects} <= {"red", "blue"}
        assert len({(item.colour, item.shape) for item in scene.objects}) == 6
