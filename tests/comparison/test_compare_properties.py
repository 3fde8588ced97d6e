"""Random pictures, texts and numbers: `compare` answers them, or refuses them in one sentence, and goes on.

More examples: `VTW_EXAMPLES=2000 python -m pytest tests/comparison/test_compare_properties.py`.
"""

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.bad_input import LAYERS, NEW_TOKENS, QUESTIONS
from vtw_demo import compare
from vtw_demo.comparison.compare import MAXIMUM_NEW_TOKENS, Comparison

EXAMPLES = int(os.environ.get("VTW_EXAMPLES", "40"))
MODES = ("RGB", "L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F")
LAYER_COUNT = 13

bounded = settings(
    max_examples=EXAMPLES,
    deadline=None,
    # A run that failed can be had again from the printed example; CI starts from nothing.
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


@st.composite
def pictures(draw):
    """Noise of any mode and shape, from nothing to the most elongated and beyond."""
    mode = draw(st.sampled_from(MODES))
    width, height = draw(
        st.one_of(st.tuples(st.integers(0, 64), st.integers(0, 64)), st.just((700, 5)), st.just((1, 101)))
    )
    values = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if not width or not height:
        return Image.new("RGB", (width, height))
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    picture = Image.fromarray(values)
    return picture.convert("RGBA").convert("LA") if mode == "LA" else picture.convert(mode)


anything = st.one_of(
    st.integers(-3, LAYER_COUNT + 3), st.integers(), st.floats(), st.text(max_size=20), st.none(), st.booleans()
)
texts = st.one_of(
    st.text(max_size=200),
    st.text(st.characters(), max_size=50),  # halves of pairs, too
    st.lists(st.sampled_from(["<image>", "</s>", "<s>", "<pad>", "<unk>", "USER:", "ASSISTANT:", "\0", " ", "a"])).map(
        "".join
    ),
    st.sampled_from([case.value for case in QUESTIONS if isinstance(case.value, str)]),
)


@pytest.fixture(scope="module")
def answered_before(small, picture):
    *_, comparison = compare(small, picture, "What is it?", 6, max_new_tokens=2)
    return comparison.full.tokens, comparison.withdrawn.tokens


def check(small, shown, question, layer, new_tokens):
    """One comparison, or one sentence; the result says which."""
    try:
        *_, comparison = compare(small, shown, question, layer, max_new_tokens=new_tokens)
    except (ValueError, TypeError) as error:
        said = str(error)
    else:
        said = None
    if said is not None:
        assert said.strip()
        assert "\n" not in said
        return None
    assert isinstance(comparison, Comparison)
    assert comparison.visual_tokens == 196, "nothing that is typed becomes a visual token"
    assert 1 <= len(comparison.full.tokens) <= new_tokens
    assert 1 <= len(comparison.withdrawn.tokens) <= new_tokens
    if layer == LAYER_COUNT:
        assert comparison.same_answer
    return comparison


@bounded
@given(shown=pictures(), question=texts, layer=st.integers(1, LAYER_COUNT), new_tokens=st.integers(1, 3))
def test_pictures_and_texts(small, shown, question, layer, new_tokens):
    result = check(small, shown, question, layer, new_tokens)
    width, height = shown.size
    elongated = not width or not height or max(width, height) > 100 * min(width, height)
    if elongated or not question.strip():
        assert result is None
    elif question.isascii() and question.strip().isalnum():
        assert result is not None


@bounded
@given(layer=anything, new_tokens=anything)
@example(layer=6, new_tokens=10**9)
@example(layer=10**5000, new_tokens=1)
def test_numbers(small, picture, answered_before, layer, new_tokens):
    in_range = (
        isinstance(layer, int) and not isinstance(layer, bool) and 1 <= layer <= LAYER_COUNT,
        isinstance(new_tokens, int) and not isinstance(new_tokens, bool) and 1 <= new_tokens <= MAXIMUM_NEW_TOKENS,
    )
    result = check(small, picture, "What is it?", layer, new_tokens)
    assert (result is not None) == all(in_range)
    *_, again = compare(small, picture, "What is it?", 6, max_new_tokens=2)
    assert (again.full.tokens, again.withdrawn.tokens) == answered_before


@pytest.mark.parametrize(
    "case", [case for case in QUESTIONS if isinstance(case.value, str)], ids=lambda case: case.name
)
def test_every_question_of_the_corpus(small, picture, case):
    assert (check(small, picture, case.value, 6, 2) is None) == (case.said is not None)


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_every_layer_of_the_corpus(small, picture, case):
    result = check(small, picture, "What is it?", case.value, 2)
    assert (result is None) == (case.said is not None or isinstance(case.value, float))


@pytest.mark.parametrize("case", NEW_TOKENS, ids=lambda case: case.name)
def test_every_number_of_new_tokens_of_the_corpus(small, picture, case):
    assert check(small, picture, "What is it?", 6, case.value) is None


@pytest.mark.parametrize("shown", [None, b"", b"none", 5, np.zeros((4, 4), complex)])
def test_what_is_no_picture(small, shown):
    assert check(small, shown, "What is it?", 6, 2) is None


def test_a_file_that_is_not_there(small):
    with pytest.raises(FileNotFoundError, match=r"There is no picture 'picture\.png'"):
        compare(small, "picture.png", "What is it?", 6)
