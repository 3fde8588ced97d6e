"""What the load test reports, and its short form against the real server."""

import json

import pytest

from tests.load import Load, Reading, load_misses, load_table, main, memory_misses, memory_table, replicas_table


def load(seconds=(1.0, 2.0, 3.0), wrong=(), lost=(), refused=0, took=10.0):
    sent = len(seconds) + len(lost)
    return Load(
        clients=20, browsers=2, seconds=10, distinct=40, sent=sent, refused=refused,
        answer_seconds=tuple(seconds), wrong=tuple(wrong), lost=tuple(lost), took_seconds=took,
        alone_seconds=(0.5,), cpu_seconds={"page": 1.0, "replicas": took},
    )  # fmt: skip


def memory(*megabytes):
    return [
        Reading(50 * number, held * 10**6, threads=20, open_files=30, uploads=number, upload_bytes=number)
        for number, held in enumerate(megabytes, 1)
    ]


def test_quantiles_are_of_the_answered():
    table = load_table(load(range(1, 102), lost=("gone",)))
    assert "| requests sent | 102 |" in table
    for name, seconds in (("half of them", 51), ("90 %", 91), ("99 %", 100), ("all", 101)):
        assert f"| answered within, {name} | {seconds}.00 s |" in table
    assert "| answered within, all | – |" in load_table(load((), lost=("gone",)))


def test_another_answer_and_a_lost_request_are_missed_bars_and_a_full_queue_is_not():
    assert load_misses(load(refused=7)) == []
    assert load_misses(load(wrong=("'Who?' at K = 3",))) == [
        "1 answers that aren't those given alone: 'Who?' at K = 3."
    ]
    assert load_misses(load(lost=("no answer within 300 s",)))[0].startswith("1 lost requests: no answer")
    assert load_misses(load(())) == ["No request was answered."]


def test_replicas_are_held_against_one_by_answers_a_second():
    table = replicas_table({1: [load(), load(took=20.0)], 2: [load(took=5.0), load(took=10.0)]})
    assert table.endswith("Ratio, by round: 2.00, 2.00.")
    assert "| 1 | 6 | 0.20 | 2.0 s | 3.0 s | page 0.07, replicas 1.00 |" in table
    assert "| 2 | 6 | 0.40 | 2.0 s | 3.0 s | page 0.13, replicas 1.00 |" in table


def test_memory_may_grow_by_5_percent():
    assert memory_misses(memory(600, 610, 629)) == []
    [sentence] = memory_misses(memory(600, 610, 620, 640))
    assert sentence.startswith("Memory after 200 comparisons is 6.7 % above that after 50; at most 5 % are allowed")
    assert "by 400 kB a comparison" in sentence
    assert "| 200 | 640 MB | 1.067 |" in memory_table(memory(600, 610, 620, 640))
    [sentence] = memory_misses(memory(600, 640))
    assert sentence.endswith("at most 5 % are allowed.")


@pytest.mark.nightly
def test_visitors_get_what_they_get_alone_and_memory_stays(tmp_path, capsys):
    file = tmp_path / "load.json"
    asked = ["--clients", "10", "--seconds", "0.1", "--comparisons", "51", "--json", str(file)]
    code = main(asked)
    said = capsys.readouterr().out
    assert code == 0, said
    assert "Every bar is met." in said
    found = json.loads(file.read_text())
    load = found["load"]
    assert load["browsers"] == 1
    assert load["distinct"] == 20
    assert load["sent"] == len(load["answer_seconds"]) >= 10
    assert (load["wrong"], load["lost"]) == ([], [])
    assert [reading["comparisons"] for reading in found["memory"]["readings"]] == [50, 51]
    assert found["machine"]
    assert found["missed"] == []


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (["--clients", "0"], "from 1 to 1000 clients; this is 0"),
        (["--seconds", "-1"], "from 0 to 3600; this is -1"),
        (["--comparisons", "-5"], "from 50 comparisons on: ask for more; this is -5"),
        (["--seconds", "0", "--comparisons", "50"], "from 50 comparisons on: ask for more; this is 50"),
        (["--replicas", "1"], "From 2 to 64 replicas are held against one; this is 1"),
        (["--host", "0.0.0.0"], "isn't a loopback address"),
    ],
)
def test_what_it_cannot_do_is_said(asked, sentence, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(asked)
    assert sentence in capsys.readouterr().err
