import json
from dataclasses import replace

import pytest

from vtw_demo.page.tabs import attention
from vtw_demo.page.tabs.attention import AttentionTab, read_choice
from vtw_demo.plots.tab import ANSWER_MEAN, LAST_PROMPT


def test_what_a_button_says_is_read_back():
    assert read_choice(LAST_PROMPT) == LAST_PROMPT
    assert read_choice("mean over the answer&#x27;s tokens".replace("&#x27;", "'")) == ANSWER_MEAN
    assert read_choice("3") == 3
    with pytest.raises(ValueError, match="nonsense"):
        read_choice("nonsense")


def test_of_the_embedded_model_it_says_where_it_looks(vlm, tmp_path, monkeypatch):
    tab = object.__new__(AttentionTab)
    file = tmp_path / "embedded.json"
    monkeypatch.setattr(attention, "EVALUATION", file)
    assert tab._where_it_looks(vlm) == ""
    shares = [(0.5, 0.0, 0.3, 0.2, 0.0)] * vlm.layers
    file.write_text(json.dumps({"attention": {"samples": 7, "shares": shares}}))
    assert "This model, over 7 questions: Of the attention" in tab._where_it_looks(vlm)
    assert tab._where_it_looks(replace(vlm, name="another")) == ""
    file.write_text(json.dumps({"attention": {"samples": 7, "shares": shares[1:]}}))
    assert tab._where_it_looks(vlm) == ""
