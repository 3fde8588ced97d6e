"""The fifty prompts: what they say of their scenes is true, and training never says them."""

import random
import re

from vtw_demo.embedded.phrasings import freely_asked
from vtw_demo.embedded.scenes import COLOURS, MAXIMUM_OBJECTS, PLACES, SHAPES, random_scene
from vtw_demo.evaluation.data import BUILT_IN
from vtw_demo.evaluation.free_words import free_prompts, read_scene


def bare(text):
    return re.sub(r"[^a-z0-9 ]", "", text.lower()).strip()


def test_there_are_fifty_and_none_is_ever_trained_on():
    prompts = {bare(prompt) for _, prompt, _ in free_prompts()}
    assert len(prompts) == 50
    generator = random.Random(0)
    asked = (freely_asked(random_scene(generator, generator.randint(1, 4)), generator) for _ in range(4000))
    assert not prompts & {bare(question.text) for question in asked}


def test_answers_name_what_is_in_the_scene_and_nothing_else():
    places = sorted((place for row in PLACES for place in row), key=len, reverse=True)
    for scene, prompt, answer in free_prompts():
        found = {
            "colour": re.findall("|".join(COLOURS), answer),
            "shape": re.findall("|".join(SHAPES), answer),
            "place": re.findall("|".join(places), answer),
            "character": re.findall(r"\b[A-Z2-9]\b", answer) if "with" in answer else [],
        }
        for fact, values in found.items():
            assert {*values} <= {getattr(item, fact) for item in scene.objects}, prompt
        assert 1 <= len(scene.objects) <= MAXIMUM_OBJECTS


def test_a_scene_is_as_it_is_written():
    scene = read_scene("large red circle A top left, small blue star bottom", 3)
    first, second = scene.objects
    assert (first.size, first.colour, first.shape, first.character, first.place) == (
        "large", "red", "circle", "A", "top left",
    )  # fmt: skip
    assert (second.size, second.colour, second.shape, second.character, second.place) == (
        "small", "blue", "star", None, "bottom",
    )  # fmt: skip


def test_the_evaluation_asks_them():
    data = BUILT_IN["free-words"](None, 0)
    assert len(data.samples) == 50
    assert BUILT_IN["free-words"](3, 0).samples[0].question == data.samples[0].question
    assert data.samples[0].open().size == (224, 224)
