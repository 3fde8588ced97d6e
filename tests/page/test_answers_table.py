import pytest

from vtw_demo.comparison.every_layer import LayerAnswer
from vtw_demo.page.answers_table import answers_table
from vtw_demo.plots.every_layer import stable_sentence


def at(make_run, *words):
    return [LayerAnswer(layer, make_run(word, (hash(word),))) for layer, word in enumerate(words, start=1)]


@pytest.mark.parametrize(
    ("words", "first"),
    [("red red red", 1), ("blue red red", 2), ("red blue red", 3), ("red red blue", None), ("blue blue blue", None)],
)
def test_the_first_layer_from_which_the_answer_stays_is_marked(make_run, words, first):
    (full,) = at(make_run, "red")
    answers = at(make_run, *words.split())
    table = answers_table(full.run, answers, is_complete=True)
    assert table.count("same from here on") == (first is not None)
    assert table.count("differs</small>") == words.split().count("blue")
    assert "same from here on" not in answers_table(full.run, answers, is_complete=False)
    said = stable_sentence(full.run, answers)
    assert f"K = {first or 3}" in said


def test_what_differs_is_marked_and_escaped(make_run):
    full = make_run("a <b> star", (1,))
    answers = [LayerAnswer(1, make_run("a <i> star", (2,))), LayerAnswer(2, make_run("", (3,)))]
    table = answers_table(full, answers, is_complete=True)
    assert "a <mark>&lt;i&gt;</mark> star" in table
    assert "<mark>⌀</mark>" in table
    assert "<b>" not in table
