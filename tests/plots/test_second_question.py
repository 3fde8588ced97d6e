import csv
import io
import re

import pytest

from vtw_demo.comparison.follow_up import FollowUp, Turn
from vtw_demo.plots.second_question import second_question_html, second_question_reading, second_question_table

LAYER, LAYERS = 6, 12


@pytest.fixture
def follow_up(make_run):
    """One of a picture of many tokens; what is said again, of which the first answers, unless told otherwise."""

    def make(withdrawn="two", fresh="two", layer=LAYER, first=((5, 2), (5, 2))):
        going_on = {"encode_ms": None, "prefill_ms": 7.0}
        return FollowUp(
            (Turn("What is it?", *first),),
            "How many <b>things</b>?",
            layer,
            LAYERS,
            230,
            21,
            make_run("three", **going_on, prefill_flops=52_000_000, kv_cache_bytes=9000),
            make_run(withdrawn, **going_on, prefill_flops=41_000_000, kv_cache_bytes=4000),
            make_run(fresh, prefill_flops=700_000_000, kv_cache_bytes=8000),
        )

    return make


def cells(html):
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in html.split("<tr")[2:]]


def test_a_row_for_each_run_has_its_answer_and_what_that_cost(follow_up):
    html = second_question_html(follow_up())
    assert cells(html) == [
        ["full, goes on with its cache", "three", "21", "52 MFLOPs", "–, 7.00 ms", "9 kB"],
        ["withdrawn at K = 6, goes on with its cache", "two", "21", "41 MFLOPs", "–, 7.00 ms", "4 kB"],
        ["full, reads the whole conversation again", "two", "230", "700 MFLOPs", "5.00 ms, 40.0 ms", "8 kB"],
    ]
    assert "How many &lt;b&gt;things&lt;/b&gt;?" in html


def test_what_an_answer_says_is_text(follow_up):
    html = second_question_html(follow_up(withdrawn="<script>"))
    assert "<script" not in html


def test_the_verdict_on_memory_is_of_the_words_alone(follow_up):
    for withdrawn in ("two", " two "):
        said = second_question_reading(follow_up(withdrawn))
        assert said.startswith("Withdrawal's memory was enough")
    said = second_question_reading(follow_up("one"))
    assert said.startswith("Withdrawal's memory wasn't enough: it says “one”, and “two” where")
    cost = "Going on takes 41 MFLOPs, reading all again 700 MFLOPs. The cache holds 4 kB instead of 8 kB."
    assert said.endswith(cost)
    assert "another first answer" not in said


def test_where_nothing_is_withdrawn_there_is_no_verdict(follow_up):
    said = second_question_reading(follow_up("one", layer=LAYERS))
    assert said.startswith("At layer 12 of 12 nothing is withdrawn")
    assert "memory" not in said


def test_another_history_of_the_full_run_is_told(follow_up):
    said = second_question_reading(follow_up(first=((5, 2), (6, 2))))
    assert "The full run goes on from another first answer." in said


def test_the_table_has_the_numbers_in_full(follow_up):
    rows = list(csv.DictReader(io.StringIO(second_question_table(follow_up()).to_csv())))
    assert [row["answer"] for row in rows] == ["three", "two", "two"]
    assert [row["tokens read"] for row in rows] == ["21", "21", "230"]
    assert [row["prefill FLOPs"] for row in rows] == ["52000000", "41000000", "700000000"]
    assert [row["encode (ms)"] for row in rows] == ["", "", "5.0"]
    assert [row["KV cache (bytes)"] for row in rows] == ["9000", "4000", "8000"]
