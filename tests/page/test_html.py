import re
from types import SimpleNamespace

import pytest

from vtw_demo.comparison.analysis import Analysis
from vtw_demo.comparison.compare import LayerAnswer, compare_prompt
from vtw_demo.page.html import (
    answers_table,
    header,
    problem_line,
    reading_line,
    token_strip,
)
from vtw_demo.plots.every_layer import stable_sentence


def model(name, precision, device, layers):
    return SimpleNamespace(name=name, precision=precision, place=device, layers=layers, note="")


def test_whatever_is_shown_is_escaped():
    assert "<i>" not in header(model("<i>", "float32", "cpu", 12))
    for line in (problem_line, reading_line):
        assert "&lt;script&gt;" in line("<script>")


def test_the_header_names_what_runs():
    shown = header(model("embedded", "4-bit", "cpu", 12), 196)
    for fact in ("model embedded", "4-bit", "cpu", "12 decoder layers", "196 visual tokens"):
        assert fact in shown
    assert "visual tokens" not in header(model("embedded", "4-bit", "cpu", 12))


def test_the_header_says_what_the_embedded_model_is_for():
    assert "coloured shapes only, and no photos" in header(model("embedded", "float32", "cpu", 12))
    assert "photos" not in header(model("llava-hf/llava-1.5-7b-hf", "4-bit", "cuda", 32))


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


@pytest.fixture(scope="module")
def analysis(vlm, picture):
    prompt = vlm.prompt(picture, "Describe the picture.")
    *_, comparison = compare_prompt(vlm, prompt, 1, 13)
    return Analysis(vlm, prompt, comparison)


def test_a_button_for_each_token_that_both_answers_have(analysis):
    comparison = analysis.comparison
    strip = token_strip(analysis, 1, has_mean=True)
    queries = re.findall(r'data-query="([^"]*)" aria-pressed="(true|false)"', strip)
    shortest = min(len(comparison.full.tokens), len(comparison.withdrawn.tokens))
    assert [query for query, _ in queries[2:]] == [str(index) for index in range(shortest)]
    assert [index for index, (_, pressed) in enumerate(queries) if pressed == "true"] == [3]
    texts = re.findall(r">([^<>]+)</button>", strip)[2:]
    token_text = analysis.vlm.token_text
    for text, full, withdrawn in zip(texts, comparison.full.tokens, comparison.withdrawn.tokens, strict=False):
        assert (" / " in text) == (full != withdrawn)
        assert text.startswith(token_text(full).strip())
    assert "mean" not in token_strip(analysis, 1, has_mean=False)


def test_totals_say_of_how_many_tokens_they_are(make_run):
    table = answers_table(make_run(), [LayerAnswer(1, make_run(tokens=(1,)))], is_complete=True)
    assert "<td>44.0 ms, 1 token</td>" in table
    assert "<td>44.0 ms, 2 tokens</td>" in table


def test_tokens_that_differ_in_a_space_are_told_apart(make_run, make_comparison):
    texts = {1: "red", 2: " red", 3: " star"}
    comparison = make_comparison(make_run(tokens=(1, 3)), make_run(tokens=(2, 3)))
    analysis = SimpleNamespace(comparison=comparison, vlm=SimpleNamespace(token_text=texts.get))
    strip = token_strip(analysis, "last prompt token", has_mean=False)
    assert ">red / ␣red</button>" in strip
    assert ">star</button>" in strip
