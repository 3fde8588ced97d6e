import pytest

from vtw_demo.page.tabs.attention import read_choice
from vtw_demo.plots.tab import ANSWER_MEAN, LAST_PROMPT


def test_what_a_button_says_is_read_back():
    assert read_choice(LAST_PROMPT) == LAST_PROMPT
    assert read_choice("mean over the answer&#x27;s tokens".replace("&#x27;", "'")) == ANSWER_MEAN
    assert read_choice("3") == 3
    with pytest.raises(ValueError, match="nonsense"):
        read_choice("nonsense")
