"""What is practised: every number of objects in the end, all kinds of pictures, what is wrong more often."""

import random
import re
from collections import Counter

import pytest

from vtw_demo.embedded.easy_vqa_data import easy_vqa_pictures
from vtw_demo.embedded.phrasings import TESTED, TRAINED
from vtw_demo.embedded.questions import SHORT_ANSWER_KINDS, describe
from vtw_demo.embedded.scenes import MAXIMUM_OBJECTS
from vtw_demo.embedded.training.practice import (
    Curriculum,
    Pictures,
    Progress,
    Shares,
    mixed_pictures,
    practice_scene,
    scene_questions,
)
from vtw_demo.embedded.unknown_pictures import MODEST_ANSWER, photos


@pytest.fixture(scope="module")
def others():
    return Pictures(easy_vqa_pictures("train")[:50], photos()[:3])


def test_the_newest_number_of_objects_is_practised_most_until_it_is_the_last():
    generator = random.Random(0)
    for level in range(1, MAXIMUM_OBJECTS + 1):
        drawn = Counter(Curriculum(0.8, level).objects(generator) for _ in range(6000))
        assert set(drawn) == set(range(1, level + 1))
        of_newest = drawn[level] / 6000
        if level == MAXIMUM_OBJECTS:
            assert all(abs(drawn[number] / 6000 - (2 * number - 1) / level**2) < 0.03 for number in drawn)
        else:
            assert abs(of_newest - (0.5 + 0.5 / level)) < 0.03


def test_scenes_get_one_object_more_once_those_before_are_mastered():
    curriculum = Curriculum(0.8)
    for step in range(400):
        curriculum.record(step, 0.7)
    assert (curriculum.level, curriculum.history) == (1, [])
    for step in range(400, 1000):
        curriculum.record(step, 1.0)
    assert curriculum.level == MAXIMUM_OBJECTS
    assert [level for _, level in curriculum.history] == list(range(1, MAXIMUM_OBJECTS))


def test_what_is_answered_wrongly_is_asked_more_often():
    shares = Shares()
    for _ in range(2000):
        for kind in SHORT_ANSWER_KINDS:
            shares.record(kind, kind != "where")
    asked = Counter(shares.kinds())
    assert asked["where"] == 8
    assert all(asked[kind] == 1 for kind in SHORT_ANSWER_KINDS if kind != "where")


def test_descriptions_are_asked_for_and_name_every_object():
    generator = random.Random(0)
    curriculum, described = Curriculum(0.8, MAXIMUM_OBJECTS), 0
    for _ in range(100):
        scene = practice_scene(generator, curriculum)
        answers = [answer for kind, _, answer in scene_questions(scene, 18, generator, SHORT_ANSWER_KINDS)
                   if kind == "description"]  # fmt: skip
        assert all(answer == describe(scene) for answer in answers)
        described += len(answers)
    assert described > 75


def test_questions_are_asked_in_words_for_training_only():
    generator = random.Random(0)
    asked = {
        text
        for _ in range(150)
        for _, text, _ in scene_questions(
            practice_scene(generator, Curriculum(0.8, 3)), 18, generator, SHORT_ANSWER_KINDS
        )
    }

    def heard(ways):
        named = "(?:(?! and say).)+"
        patterns = [re.escape(text).replace(r"\{noun\}", named).replace(r"\{direction\}", named) for text in ways]
        return [any(re.fullmatch(pattern, text) for text in asked) for pattern in patterns]

    for kind in TRAINED:
        assert sum(heard(TRAINED[kind])) > len(TRAINED[kind]) / 2
        assert not any(heard(TESTED[kind]))


def test_pictures_are_scenes_and_others_and_each_is_asked_about(others):
    pictures, asked, scenes = mixed_pictures(
        others, Progress(Curriculum(0.8, MAXIMUM_OBJECTS), Shares()), random.Random(0), 100, 6
    )
    assert len(pictures) == len(asked) == len(scenes) == 100
    kinds = Counter()
    for turns, scene in zip(asked, scenes, strict=True):
        kinds[turns[0][0] if scene is None else "scene"] += 1
        modest = {answer == MODEST_ANSWER for _, _, answer in turns}
        assert modest == {scene is None and turns[0][0] == "unknown"}
    assert 50 < kinds["scene"] < 80
    assert 12 < kinds["easy-vqa"] < 40
    assert 2 < kinds["unknown"] < 22


def test_the_same_seed_gives_the_same_practice(others):
    first, second = (
        mixed_pictures(others, Progress(Curriculum(0.8, 4), Shares()), random.Random(3), 8, 6) for _ in range(2)
    )
    assert [picture.tobytes() for picture in first[0]] == [picture.tobytes() for picture in second[0]]
    assert first[1:] == second[1:]
