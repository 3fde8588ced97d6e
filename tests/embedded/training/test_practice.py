"""What is practised: every number of objects in the end, all kinds of pictures, what is wrong more often."""

import random
import re
from collections import Counter

from vtw_demo.embedded.phrasings import TESTED, TRAINED
from vtw_demo.embedded.questions import SHORT_ANSWER_KINDS, describe
from vtw_demo.embedded.scenes import MAXIMUM_OBJECTS
from vtw_demo.embedded.training.practice import Progress, mixed_picture, practice_scene, scene_questions
from vtw_demo.embedded.unknown_pictures import MODEST_ANSWER


def mixed(count, seed=0):
    """Pictures, what is asked about each, and their scenes."""
    progress, generator = Progress(MAXIMUM_OBJECTS), random.Random(seed)
    return [mixed_picture(progress, 6, generator) for _ in range(count)]


def test_a_number_of_objects_is_practised_the_more_the_larger_it_is():
    generator = random.Random(0)
    for level in range(1, MAXIMUM_OBJECTS + 1):
        drawn = Counter(Progress(level).objects(generator) for _ in range(6000))
        assert set(drawn) == set(range(1, level + 1))
        assert all(abs(drawn[number] / 6000 - (2 * number - 1) / level**2) < 0.03 for number in drawn)


def test_scenes_get_one_object_more_once_those_before_are_mastered():
    progress = Progress(1)
    for _ in range(400):
        progress.record([("where", 1, number < 7) for number in range(10)] + [("where", 0, True)] * 90, 0.8)
    assert progress.level == 1
    levels = []
    for _ in range(600):
        progress.record([("where", progress.level, True), ("description", progress.level, False)], 0.8)
        levels.append(progress.level)
    assert set(levels) == set(range(1, MAXIMUM_OBJECTS + 1))
    assert levels == sorted(levels)


def test_what_is_answered_wrongly_is_asked_more_often():
    progress = Progress(1)
    for _ in range(2000):
        progress.record([(kind, 1, kind != "where") for kind in SHORT_ANSWER_KINDS], 1.0)
    asked = Counter(progress.kinds())
    assert asked["where"] == 8
    assert all(asked[kind] == 1 for kind in SHORT_ANSWER_KINDS if kind != "where")


def test_descriptions_are_asked_for_and_name_every_object():
    generator = random.Random(0)
    progress, described = Progress(MAXIMUM_OBJECTS), 0
    for _ in range(100):
        scene = practice_scene(generator, progress)
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
        for _, text, _ in scene_questions(practice_scene(generator, Progress(3)), 18, generator, SHORT_ANSWER_KINDS)
    }

    def heard(ways):
        named = "(?:(?! and say).)+"
        patterns = [re.escape(text).replace(r"\{noun\}", named).replace(r"\{direction\}", named) for text in ways]
        return [any(re.fullmatch(pattern, text) for text in asked) for pattern in patterns]

    for kind in TRAINED:
        assert sum(heard(TRAINED[kind])) > len(TRAINED[kind]) / 2
        assert not any(heard(TESTED[kind]))


def test_pictures_are_scenes_and_others_and_each_is_asked_about():
    kinds = Counter()
    for _, turns, scene in mixed(100):
        kinds[turns[0][0] if scene is None else "scene"] += 1
        modest = {answer == MODEST_ANSWER for _, _, answer in turns}
        assert modest == {scene is None and turns[0][0] == "unknown"}
    assert 70 < kinds["scene"] < 97
    assert 2 < kinds["easy-vqa"] < 22
    assert 0 < kinds["unknown"] < 15


def test_the_same_seed_gives_the_same_practice():
    for (picture, *first), (again, *second) in zip(mixed(8, seed=3), mixed(8, seed=3), strict=True):
        assert picture.tobytes() == again.tobytes()
        assert first == second
