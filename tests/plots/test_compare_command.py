import json

import pytest

from vtw_demo.__main__ import main


@pytest.fixture
def image(tmp_path, picture):
    file = tmp_path / "picture.png"
    picture.save(file)
    return file


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_both_answers_report_and_json(image, tmp_path, capsys):
    report, data = tmp_path / "out.html", tmp_path / "out.json"
    asked = ["--image", str(image), "--question", "What is in the picture?", "--layer", "9", "--device", "cpu"]
    assert main(["compare", *asked, "--rounds", "2", "--report", str(report), "--json", str(data)]) == 0
    shown, written = capsys.readouterr().out, json.loads(data.read_text())
    for run in ("full", "withdrawn"):
        assert written["comparison"][run]["answer"] in shown
    assert "FLOPs" in shown
    assert len(written["timing"]["full"]["prefill_ms"]) == 2
    assert written["comparison"]["question"] in report.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--layer": "13"}, "from 1 to 12"),
        ({"--question": " "}, "question is empty"),
        ({"--image": "gone.png"}, "gone.png"),
        ({"--rounds": "1000"}, "1000"),
    ],
)
def test_errors_are_sentences(image, tmp_path, capsys, changes, said):
    options = {"--image": str(image), "--question": "What?", "--layer": "6", "--device": "cpu"} | changes
    options["--json"] = str(tmp_path / "out.json")
    assert main(["compare", *(part for pair in options.items() for part in pair)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
