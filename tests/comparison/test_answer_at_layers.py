import threading

import pytest

from vtw_demo.comparison.compare import LayerAnswer, answer_at_layers, compare, first_stable_layer

QUESTION = "What do you see?"


@pytest.fixture(scope="module")
def full(vlm, picture):
    *_, comparison = compare(vlm, picture, QUESTION, vlm.layers, max_new_tokens=6)
    return comparison.full


def test_each_answer_is_that_of_a_comparison_at_its_layer(vlm, picture, full):
    answers = list(answer_at_layers(vlm, vlm.prompt(picture, QUESTION), (2, 7, 13), full, max_new_tokens=6))
    assert [answer.layer for answer in answers] == [2, 7, 13]
    for answer in answers:
        *_, comparison = compare(vlm, picture, QUESTION, answer.layer, max_new_tokens=6)
        assert answer.run.tokens == comparison.withdrawn.tokens
        assert answer.run.prefill_flops == comparison.withdrawn.prefill_flops


def test_stopping_ends_it(vlm, picture, full):
    stop = threading.Event()
    answers = []
    for answer in answer_at_layers(vlm, vlm.prompt(picture, QUESTION), range(1, 12), full, max_new_tokens=6, stop=stop):
        answers.append(answer)
        stop.set()
    assert [answer.layer for answer in answers] == [1]


def at(make_run, *words):
    return [LayerAnswer(layer, make_run(word, (hash(word),))) for layer, word in enumerate(words, start=1)]


@pytest.mark.parametrize(
    ("words", "first"),
    [("red red red", 1), ("blue red red", 2), ("red blue red", 3), ("red red blue", None), ("blue blue blue", None)],
)
def test_the_first_layer_from_which_the_answer_stays(make_run, words, first):
    (full,) = at(make_run, "red")
    answers = at(make_run, *words.split())
    assert first_stable_layer(full.run, answers) == first
