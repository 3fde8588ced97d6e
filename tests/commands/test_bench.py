import json

from vtw_demo import benchmark
from vtw_demo.__main__ import main


def test_table_and_json(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(benchmark.SHAPES, "small", benchmark.Shape(3, 32, 48, 2, 16))
    file = tmp_path / "bench.json"
    assert main(["bench", "--rounds", "2", "--text-tokens", "6", "--tokens-before", "2", "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "3 layers, hidden 32, 16 visual tokens, 6 text tokens, 2 before the picture" in shown
    result = json.loads(file.read_text())
    for name, ratio in result["ratios"].items():
        assert f"| {name} | {ratio['median']:.2f} |" in shown
        assert len(ratio["rounds"]) == 2


def test_errors_are_sentences(capsys):
    assert main(["bench", "--rounds", "0"]) == 2
    assert "At least 1 round is needed" in capsys.readouterr().err
