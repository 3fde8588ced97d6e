import random

import numpy as np

from vtw_demo.embedded.unknown_pictures import photos, unknown_picture


def test_unknown_pictures_are_many_and_not_blank():
    generator, shown = random.Random(0), photos()
    pictures = [unknown_picture(shown, generator) for _ in range(30)]
    assert all((picture.size, picture.mode) == ((224, 224), "RGB") for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)
    assert sum(np.asarray(picture).std() > 20 for picture in pictures) > 15


def test_the_same_seed_gives_the_same_picture():
    shown = photos()
    first, second = (unknown_picture(shown, random.Random(7)) for _ in range(2))
    assert first.tobytes() == second.tobytes()
