from html.parser import HTMLParser

import pytest

from vtw_demo.measurements.token_probabilities import AnswerProbabilities, AnswerToken
from vtw_demo.plots.differences import differences_html, differences_reading, differences_table

THE, RED, BLUE, STAR, END = (
    AnswerToken(1, "The", 0.99, 0.982),
    AnswerToken(2, " red", 0.61, 0.3),
    AnswerToken(3, " blue", 0.35, 0.66),
    AnswerToken(4, " star", 0.9, 0.0004),
    AnswerToken(5, "(end)", 1.0, 0.0),
)
FISH = AnswerToken(6, "fish", 0.71, 0.64)
PARTED = AnswerProbabilities(4, (THE, RED, STAR, END), (THE, BLUE, STAR, FISH, END))


class Fragment(HTMLParser):
    """What a reader gets of a fragment: its words, each a list of (classes, label, style, text) for its tokens."""

    def __init__(self, html):
        super().__init__()
        self.headings, self.rows = [], []
        self.open = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        classes = (attributes.get("class") or "").split()
        self.open.append((tag, classes))
        if "tokens" in classes:
            self.rows.append([])
        elif "word" in classes:
            self.rows[-1].append([])
        elif "token" in classes:
            if "missing" not in classes:
                assert attributes["tabindex"] == "0"
            self.rows[-1][-1].append([classes, attributes.get("aria-label"), attributes.get("style"), ""])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open[-1][0] == "h3":
            self.headings.append(data)
        elif self.open[-1][0] == "small":
            self.rows[-1][-1][-1][-1] += f"[{data}] "
        elif "token" in self.open[-1][1]:
            self.rows[-1][-1][-1][-1] += data

    def texts(self, row):
        return [[token[-1] for token in word] for word in self.rows[row]]

    def tokens(self, row):
        return [token for word in self.rows[row] for token in word]

    def marked(self, row, name):
        return [index for index, token in enumerate(self.tokens(row)) if name in token[0]]


def test_both_answers_word_by_word():
    fragment = Fragment(differences_html(PARTED))
    assert fragment.headings == ["Every layer sees the picture", "Visual tokens withdrawn at layer 4"]
    assert fragment.texts(0) == [["The"], ["[first difference] red"], ["star"], ["(end)"]]
    assert fragment.texts(1) == [["The"], ["[first difference] blue"], ["star", "fish"], ["(end)"]]


def test_the_first_difference_and_what_differs_after_it_are_marked():
    fragment = Fragment(differences_html(PARTED))
    assert [fragment.marked(row, "first") for row in (0, 1)] == [[1], [1]]
    assert [fragment.marked(row, "differs") for row in (0, 1)] == [[], [3]]
    same = Fragment(differences_html(AnswerProbabilities(4, (THE, RED), (THE, RED))))
    assert not same.marked(0, "first") + same.marked(1, "first") + same.marked(0, "differs") + same.marked(1, "differs")


def test_each_token_says_and_draws_both_probabilities():
    fragment = Fragment(differences_html(PARTED))
    labels = [label for _, label, _, _ in fragment.tokens(1)]
    assert labels == [
        "“The”: full 99.0 %, withdrawn at 4: 98.2 %",
        "“blue”: full 35.0 %, withdrawn at 4: 66.0 %",
        "“star”: full 90.0 %, withdrawn at 4: less than 0.1 %",
        "“fish”: full 71.0 %, withdrawn at 4: 64.0 %",
        "“(end)”: full 100.0 %, withdrawn at 4: 0 %",
    ]
    styles = [style for _, _, style, _ in fragment.tokens(0)]
    assert styles[0] == "--full:99.0%;--withdrawn:98.2%"
    assert styles[1] == "--full:61.0%;--withdrawn:30.0%"


@pytest.mark.parametrize(("full", "withdrawn", "row"), [((THE,), (THE, RED), 0), ((THE, RED), (THE,), 1)])
def test_an_answer_that_stops_first_says_so(full, withdrawn, row):
    fragment = Fragment(differences_html(AnswerProbabilities(4, full, withdrawn)))
    assert fragment.texts(row) == [["The"], ["[first difference] stops here"]]
    assert fragment.texts(1 - row) == [["The"], ["[first difference] red"]]


def test_all_text_is_escaped_and_a_space_is_seen():
    nasty = (AnswerToken(1, "<b>\"&'", 0.5, 0.5), AnswerToken(2, "\n", 0.5, 0.5))
    html = differences_html(AnswerProbabilities(4, nasty, nasty))
    assert "<b>" not in html
    fragment = Fragment(html)
    assert fragment.texts(0) == [["<b>\"&'"], ["␣"]]
    assert fragment.tokens(0)[0][1] == "“<b>\"&'”: full 50.0 %, withdrawn at 4: 50.0 %"


@pytest.mark.parametrize(
    ("full", "withdrawn", "sentence"),
    [
        (
            (THE, RED, END),
            (THE, BLUE, END),
            "The answers part at token 2. There the full model gives “red” 61 % and “blue” 35 %, and withdrawn at "
            "layer 4 it gives them 30 % and 66 %.",
        ),
        (
            (THE, END),
            (THE, STAR, END),
            "The answers part at token 2. There the full model gives “(end)” 100 % and “star” 90 %, and withdrawn at "
            "layer 4 it gives them 0 % and less than 0.1 %.",
        ),
        (
            (THE, RED, FISH),
            (THE, RED, FISH),
            "Both runs give the same 3 tokens. The least certain, “red”, has 61 % in full and 30 % withdrawn at "
            "layer 4.",
        ),
        (
            (FISH,),
            (FISH,),
            "Both runs give the same token, “fish”, which has 71 % in full and 64 % withdrawn at layer 4.",
        ),
        (
            (THE,),
            (THE, RED),
            "The answers part at token 2, which only the withdrawn run's answer has: “red”, with 61 % in full and 30 % "
            "withdrawn at layer 4.",
        ),
        (
            (THE, RED),
            (THE,),
            "The answers part at token 2, which only the full run's answer has: “red”, with 61 % in full and 30 % "
            "withdrawn at layer 4.",
        ),
    ],
)
def test_the_reading(full, withdrawn, sentence):
    assert differences_reading(AnswerProbabilities(4, full, withdrawn)) == sentence


def test_the_table_has_a_row_for_each_token():
    table = differences_table(PARTED)
    assert table.columns == ("answer", "token (counted from 1)", "text", "full (%)", "withdrawn (%)")
    assert [row[:3] for row in table.rows[3:6]] == [
        ("full", 4, "(end)"),
        ("withdrawn", 1, "The"),
        ("withdrawn", 2, " blue"),
    ]
    assert table.rows[5][3:] == pytest.approx((35, 66))
    assert len(table.rows) == 9


@pytest.mark.parametrize(
    ("texts", "seen"), [(("red", " red"), ("red", "␣red")), ((" ", "\n"), ("␣", "⏎")), (("a\n", "a"), ("a⏎", "a"))]
)
def test_tokens_that_differ_in_a_space_only_are_told_apart(texts, seen):
    full, withdrawn = (AnswerToken(number, text, 0.5, 0.4) for number, text in enumerate(texts))
    parted = AnswerProbabilities(4, (THE, full), (THE, withdrawn))
    assert all(f"“{name}”" in differences_reading(parted) for name in seen)
    fragment = Fragment(differences_html(parted))
    assert [fragment.tokens(row)[1][-1].removeprefix("[first difference] ") for row in (0, 1)] == list(seen)
