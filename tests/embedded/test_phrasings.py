import random
import re

import pytest

from vtw_demo.embedded.phrasings import TESTED, TRAINED, carelessly_typed, freely_asked, rephrased
from vtw_demo.embedded.questions import ask
from vtw_demo.embedded.scenes import COLOURS, SHAPES, random_scene


@pytest.mark.parametrize("kind", sorted(TRAINED))
@pytest.mark.parametrize("ways", [TRAINED, TESTED], ids=["trained", "tested"])
def test_every_question_can_be_put_in_other_words(kind, ways):
    generator = random.Random(kind)
    seen = set()
    for number in range(400):
        question = ask(random_scene(generator, 1 + number % 6), kind, generator)
        if question is None:
            continue
        other = rephrased(question, generator, ways)
        assert (other.kind, other.answer) == (question.kind, question.answer)
        if other.text != question.text:
            seen.add(other.text)
            assert "{" not in other.text
    assert len(seen) >= len(ways[kind])


def test_what_is_asked_stays_named():
    generator = random.Random(1)
    for number in range(300):
        question = ask(random_scene(generator, 2 + number % 5), "relation", generator)
        if question is not None:
            text = rephrased(question, generator).text
            (direction,) = [d for d in ("left of", "right of", "above", "below") if f" {d} the " in question.text]
            noun = question.text.split(f" {direction} the ")[1].rstrip("?")
            assert direction in text.lower()
            assert noun in text


def test_no_phrasing_is_both_trained_and_tested():
    for kind in TRAINED:
        assert not {t.lower() for t in TRAINED[kind]} & {t.lower() for t in TESTED[kind]}
    every = [text for ways in (TRAINED, TESTED) for texts in ways.values() for text in texts]
    assert len(set(every)) == len(every)


def test_careless_typing_only_loses_capitals_and_the_last_mark():
    generator = random.Random(0)
    typed = {carelessly_typed("What is Left?", generator) for _ in range(200)}
    assert typed == {"What is Left?", "what is left?", "What is Left", "what is left"}


def test_free_words_ask_what_the_scene_answers():
    generator, answers, texts = random.Random(0), set(), []
    for _ in range(600):
        scene = random_scene(generator, generator.randint(1, 4))
        asked = freely_asked(scene, generator)
        assert not re.search(r"[{}]", asked.text), asked.text
        assert asked.answer
        named = {name for name in (*COLOURS, *SHAPES) if re.search(rf"\b{name}\b", asked.answer)}
        assert named <= {getattr(item, fact) for item in scene.objects for fact in ("colour", "shape")}
        answers.add(asked.answer)
        texts.append(asked.text)
    assert any(" one" in text for text in texts)
    assert any(", " in answer for answer in answers)
    assert {"yes", "no"} <= answers
