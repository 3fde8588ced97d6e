"""The fifty prompts: what they say of their scenes is true, and training never says them."""

import math
import random
import re

from vtw_demo.embedded.phrasings import freely_asked
from vtw_demo.embedded.scenes import COLOURS, DIAMETERS, MAXIMUM_OBJECTS, PLACES, SHAPES, random_scene
from vtw_demo.evaluation.data import BUILT_IN, free_words

SAMPLES = free_words().samples


def bare(text):
    return re.sub(r"[^a-z0-9 ]", "", text.lower()).strip()


def scene_of(sample):
    (scene,) = sample.open.args
    return scene


def test_there_are_fifty_and_none_is_ever_trained_on():
    prompts = {bare(sample.question) for sample in SAMPLES}
    assert len(prompts) == len(SAMPLES) == 50
    generator = random.Random(0)
    asked = (freely_asked(random_scene(generator, generator.randint(1, 4)), generator) for _ in range(4000))
    assert not prompts & {bare(question.text) for question in asked}


def test_answers_name_what_is_in_the_scene_and_nothing_else():
    places = sorted((place for row in PLACES for place in row), key=len, reverse=True)
    for sample in SAMPLES:
        (answer,), scene = sample.references, scene_of(sample)
        for fact, names in (("colour", COLOURS), ("shape", SHAPES), ("place", places)):
            named = {*re.findall("|".join(names), answer)}
            assert named <= {getattr(item, fact) for item in scene.objects}, sample.question


def test_its_scenes_could_have_been_drawn_at_random():
    for scene in dict.fromkeys(map(scene_of, SAMPLES)):
        assert 1 <= len(scene.objects) <= MAXIMUM_OBJECTS
        for item in scene.objects:
            low, high = DIAMETERS[item.size]
            assert low <= item.diameter <= high
            assert all(math.dist(COLOURS[item.colour], base) > 100 for base in scene.background)
            others = [other for other in scene.objects if other is not item]
            apart = (math.dist((item.x, item.y), (o.x, o.y)) - (item.diameter + o.diameter) / 2 for o in others)
            assert all(gap > 0 for gap in apart)


def test_the_evaluation_asks_them():
    assert BUILT_IN["free-words"](3, 0).samples[0].question == SAMPLES[0].question
    assert SAMPLES[0].open().size == (224, 224)
