import math

import pytest
from vtw_demo.benchmark.load_test.crowd import Load
from vtw_demo.benchmark.load_test.memory import Memory, Reading
from vtw_demo.benchmark.load_test.results import load_misses, load_table, memory_misses, memory_table


def load(seconds=(1.0, 2.0, 3.0), wrong=(), lost=(), refused=0):
    sent = len(seconds) + len(lost)
    return Load(
        clients=20, browsers=2, seconds=10, distinct=40, sent=sent, refused=refused,
        answer_seconds=tuple(seconds), wrong=tuple(wrong), lost=tuple(lost),
    )  # fmt: skip


def memory(*megabytes):
    return Memory(
        tuple(
            Reading(50 * number, held * 10**6, threads=20, open_files=30, uploads=number, upload_bytes=number)
            for number, held in enumerate(megabytes, 1)
        )
    )


def test_quantiles_are_of_the_answered():
    found = load(range(1, 102), lost=("gone",))
    assert [found.quantile(share) for share in (0.0, 0.5, 0.9, 0.99, 1.0)] == [1, 51, 91, 100, 101]
    assert load((), lost=("gone",)).quantile(0.5) is None
    table = load_table(found)
    assert "| requests sent | 102 |" in table
    assert "| answered within, 90 % | 91.00 s |" in table


def test_every_request_is_answered_or_lost():
    with pytest.raises(ValueError, match="3 requests, but 1 answered and 1 lost"):
        Load(20, 2, 10, 40, sent=3, refused=0, answer_seconds=(1.0,), wrong=(), lost=("gone",))


def test_another_answer_and_a_lost_request_are_missed_bars_and_a_full_queue_is_not():
    assert load_misses(load(refused=7)) == []
    assert load_misses(load(wrong=("'Who?' at K = 3",))) == [
        "1 answers that aren't those given alone: 'Who?' at K = 3."
    ]
    assert load_misses(load(lost=("no answer within 300 s",)))[0].startswith("1 lost requests: no answer")
    assert load_misses(load(())) == ["No request was answered."]


def test_memory_may_grow_by_5_percent():
    assert memory_misses(memory(600, 610, 629)) == []
    [sentence] = memory_misses(memory(600, 610, 620, 640))
    assert sentence.startswith("Memory after 200 comparisons is 6.7 % above that after 50; at most 5 % are allowed")
    assert "by 400 kB a comparison" in sentence
    assert "| 200 | 640 MB | 1.067 |" in memory_table(memory(600, 610, 620, 640))


def test_growth_takes_two_readings():
    with pytest.raises(ValueError, match="two readings"):
        memory(600)
    assert math.isnan(memory(600, 601).bytes_a_comparison)
