import json

import pytest

from vtw_demo.__main__ import main
from vtw_demo.benchmark.command import SUITES, moved

SMALL = ["bench", "--device", "cpu", "--rounds", "2", "--text-tokens", "6", "--tokens-before", "2", "--new-tokens", "3"]


@pytest.mark.usefixtures("tiny")
def test_table_json_plot_and_check(tmp_path, capsys):
    file, plot = tmp_path / "bench.json", tmp_path / "bench.html"
    assert main([*SMALL, "--layers", "2", "4", "--json", str(file), "--plot", str(plot)]) == 0
    shown, result = capsys.readouterr().out, json.loads(file.read_text())
    assert "small, float32, batch 1, 22 tokens, 3 new tokens" in shown
    assert [answer["name"] for answer in result["answers"]] == ["bare model", "withdrawn at 2", "withdrawn at 4"]
    for overhead in result["overheads"]:
        assert f"| {overhead['name']} | {overhead['median']:.3f} |" in shown
    assert result["machine"]["versions"]["torch"]
    assert "measured" in plot.read_text() or "Plotly" in plot.read_text()
    for answer in result["answers"]:
        answer["ratios"] = [[99.0, 100.0]] * 4
    file.write_text(json.dumps(result))
    assert main([*SMALL, "--layers", "2", "4", "--no-overheads", "--check", str(file)]) == 1
    assert "withdrawn at 2, prefill:" in capsys.readouterr().out


@pytest.mark.usefixtures("tiny")
def test_default_layers_are_quarters(tmp_path):
    file = tmp_path / "bench.json"
    assert main([*SMALL, "--no-overheads", "--json", str(file)]) == 0
    assert [answer["layer"] for answer in json.loads(file.read_text())["answers"]] == [None, 1, 2, 3, 4]


@pytest.mark.usefixtures("tiny")
def test_a_suite_runs_each_command_into_a_new_folder(tmp_path, monkeypatch, capsys):
    short = "--shape small --device cpu --text-tokens 6 --tokens-before 2 --new-tokens 3 --no-overheads"
    monkeypatch.setitem(SUITES, "cpu", [f"{short} --rounds 1", f"{short} --rounds 0"])
    folder = tmp_path / "new" / "folder"
    assert main(["bench", "--suite", "cpu", "--out", str(folder)]) == 1
    assert "Left out: At least 1 round" in capsys.readouterr().out
    assert {file.name for file in folder.iterdir()} == {"small.json", "small.html"}


def test_a_loaded_model_is_measured_with_its_comparison(small_folder, tmp_path):
    file = tmp_path / "bench.json"
    assert main(["bench", "--model", str(small_folder), "--device", "cpu", "--rounds", "1", "--layers", "6", "12",
                 "--new-tokens", "3", "--json", str(file)]) == 0  # fmt: skip
    assert "a comparison, in two bare generate calls" in {
        part["name"] for part in json.loads(file.read_text())["overheads"]
    }


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--rounds", "0"], "At least 1 round"),
        (["--layers", "9"], "from 1 to 4"),
        (["--new-tokens", "1"], "at least 2"),
    ],
)
def test_errors_are_sentences(changes, said, capsys):
    assert main([*SMALL, *changes]) == 2
    assert said in capsys.readouterr().err


def result(prefill=(0.5, 0.52), sweep=(1.5, 1.6), what="small"):
    answer = {"name": "withdrawn at 2", "layer": 2, "median_ratio": {"prefill": 0}, "ratios": [list(prefill)]}
    return {"what": what, "answers": [answer], "overheads": [{"name": "sweep", "rounds": list(sweep)}]}


def test_what_stays_within_the_earlier_spread_has_not_moved():
    assert moved(result(), result((0.51, 0.53), (1.55, 1.55))) == ()


def test_what_leaves_it_is_named_with_both_figures():
    (sentence,) = moved(result(), result(prefill=(0.7, 0.7)))
    assert sentence == "withdrawn at 2, prefill: 0.700, before 0.510 (0.500 to 0.520)."
    (sentence,) = moved(result(), result(sweep=(1.0, 1.0)))
    assert sentence.startswith("sweep: 1.000, before 1.550")


def test_other_things_are_not_compared():
    with pytest.raises(ValueError, match="measure the same"):
        moved(result(), result(what="embedded"))
