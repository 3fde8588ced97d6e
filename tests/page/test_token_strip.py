import re

import pytest

from vtw_demo.comparison.analysis import Analysis
from vtw_demo.comparison.compare import compare_prompt
from vtw_demo.page.token_strip import read_choice, strip_html
from vtw_demo.plots.tab import ANSWER_MEAN, LAST_PROMPT


@pytest.fixture(scope="module")
def analysis(vlm, picture):
    prompt = vlm.prompt(picture, "Describe the picture.")
    *_, comparison = compare_prompt(vlm, prompt, 1, 12)
    return Analysis(vlm, prompt, comparison)


def test_a_button_for_each_token_that_both_answers_have(analysis):
    comparison = analysis.comparison
    strip = strip_html(analysis, 1, has_mean=True)
    queries = re.findall(r'data-query="([^"]*)" aria-pressed="(true|false)"', strip)
    shortest = min(len(comparison.full.tokens), len(comparison.withdrawn.tokens))
    assert [query for query, _ in queries[2:]] == [str(index) for index in range(shortest)]
    assert [index for index, (_, pressed) in enumerate(queries) if pressed == "true"] == [3]
    texts = re.findall(r">([^<>]+)</button>", strip)[2:]
    token_text = analysis.vlm.token_text
    for text, full, withdrawn in zip(texts, comparison.full.tokens, comparison.withdrawn.tokens, strict=False):
        assert (" / " in text) == (full != withdrawn)
        assert text.startswith(token_text(full).strip())
    assert "mean" not in strip_html(analysis, 1, has_mean=False)


def test_what_a_button_says_is_read_back():
    assert read_choice(LAST_PROMPT) == LAST_PROMPT
    assert read_choice("mean over the answer&#x27;s tokens".replace("&#x27;", "'")) == ANSWER_MEAN
    assert read_choice("3") == 3
    with pytest.raises(ValueError, match="nonsense"):
        read_choice("nonsense")
