import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from vtw_demo.__main__ import main
from vtw_demo.measurements.layer_sweep import sweep
from vtw_demo.plots.images import NO_BROWSER

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "red.png")
    rows = ['{"image": "red.png", "question": "What color is it?"}', '{"image": "gone.png", "question": "What?"}']
    (folder / "data.jsonl").write_text("\n".join([*rows, rows[0].replace("color", "shape")]))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("BROWSER_PATH", "/no/such/browser")  # what draws a PNG takes its time
    return tmp_path / "cache"


def test_result_plots_and_skipped_rows(data, tmp_path, capsys, caplog):
    out = tmp_path / "out"
    assert main(["calibrate", "--data", str(data), "--device", "cpu", "--out", str(out), "--threshold", "0.5"]) == 0
    said = capsys.readouterr()
    assert "skipped data.jsonl, line 2: There is no picture" in caplog.text
    assert "2/2" in said.err
    assert "| 11" in said.out
    result = json.loads((out / "calibration.json").read_text())
    assert result["samples"] == ["data.jsonl, line 1", "data.jsonl, line 3"]
    assert (result["model"], result["threshold"]) == ("embedded", 0.5)
    assert result["quantization"] in ("4bit", None)  # as this processor is faster
    assert f"K = {result['nearest_layer']}" in said.out
    assert NO_BROWSER in said.err
    assert not (out / "calibration.png").exists()
    page = (out / "calibration.html").read_text()
    assert "mean of 2 samples" in page
    assert "<script src=" not in page  # opens offline


def test_the_curve_is_drawn_as_png(data, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("BROWSER_PATH")
    assert main(["calibrate", "--data", str(data), "--device", "cpu", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    if NO_BROWSER in said.err and not os.environ.get("CI"):
        pytest.skip(NO_BROWSER)
    assert str(tmp_path / "calibration.png") in said.out
    with Image.open(tmp_path / "calibration.png") as plot:
        assert plot.format == "PNG"
        assert min(plot.size) > 400
        assert len(plot.convert("RGB").getcolors(1 << 24)) > 50


def test_what_was_measured_before_ctrl_c_is_kept(data, tmp_path, capsys, monkeypatch):
    out, measured, real = tmp_path / "out", [], sweep

    def interrupted(model, inputs):
        if len(measured) == 1:
            raise KeyboardInterrupt
        measured.append(1)
        return real(model, inputs)

    monkeypatch.setattr("vtw_demo.comparison.calibration.sweep", interrupted)
    arguments = ["calibrate", "--data", str(data), "--device", "cpu", "--out", str(out)]
    assert main(arguments) == 130
    assert "the same command goes on there" in capsys.readouterr().err
    assert not out.exists()
    measured.clear()
    assert main(arguments) == 0
    assert len(measured) == 1
    assert len(json.loads((out / "calibration.json").read_text())["measurements"]) == 2


def test_more_of_the_answer_is_measured_on_own_data_only(data, tmp_path, capsys):
    out = tmp_path / "out"
    means = []
    for tokens in ("1", "3"):
        asked = ["calibrate", "--data", str(data), "--device", "cpu", "--out", str(out), "--answer-tokens", tokens]
        assert main(asked) == 0
        means.append(json.loads((out / "calibration.json").read_text())["mean"])
    assert means[0] != means[1]
    capsys.readouterr()
    assert main(["calibrate", "--answer-tokens", "3", "--out", str(tmp_path / "none")]) == 2
    assert "--answer-tokens and the options of columns are for --data" in capsys.readouterr().err
    assert main(["calibrate", "--question-column", "ask", "--out", str(tmp_path / "none")]) == 2
    assert "--answer-tokens and the options of columns are for --data" in capsys.readouterr().err
    assert main(["calibrate", "--data", str(data), "--answer-tokens", "0"]) == 2
    assert "At least 1 token of the answer is measured; 0 were asked for" in capsys.readouterr().err


def test_strict_writes_nothing(data, tmp_path, capsys, cache):
    out = tmp_path / "out"
    assert main(["calibrate", "--data", str(data), "--strict", "--out", str(out)]) == 2
    assert "1 bad row: data.jsonl, line 2" in capsys.readouterr().err
    assert not out.exists()
    assert not cache.exists()


UNASKABLE = {
    "half a pair": '{"image": "red.png", "question": "Which \\ud83d?"}',
    "nothing visible": json.dumps({"image": "red.png", "question": "\u200b"}),
    "beyond the context": json.dumps({"image": "red.png", "question": "star " * 6000}),
}


@pytest.mark.parametrize("kind", UNASKABLE)
def test_a_row_that_cant_be_asked_stops_nothing(data, small_folder, tmp_path, capsys, caplog, kind):
    good = '{"image": "red.png", "question": "What color is it?"}'
    (data / "data.jsonl").write_text("\n".join([good, UNASKABLE[kind], good.replace("color", "shape")]))
    out = tmp_path / "out"
    asked = ["calibrate", "--model", str(small_folder), "--data", str(data), "--device", "cpu", "--out", str(out)]
    assert main(asked) == 0
    assert "skipped data.jsonl, line 2: " in caplog.text
    assert json.loads((out / "calibration.json").read_text())["samples"] == [
        "data.jsonl, line 1",
        "data.jsonl, line 3",
    ]
    assert main([*asked[:-1], str(tmp_path / "strict"), "--strict"]) == 2
    assert "has 1 bad row: data.jsonl, line 2: " in capsys.readouterr().err
    assert not (tmp_path / "strict").exists()
    (data / "data.jsonl").write_text(UNASKABLE[kind])
    assert main(asked) == 2
    assert "has no row that can be used: data.jsonl, line 1: " in capsys.readouterr().err


def test_columns_of_other_names(data, small_folder, tmp_path):
    (data / "data.jsonl").write_text('{"pic": "red.png", "ask": "What color is it?"}')
    out = tmp_path / "out"
    asked = ["calibrate", "--model", str(small_folder), "--data", str(data / "data.jsonl"), "--out", str(out)]
    assert main([*asked, "--image-column", "pic", "--question-column", "Ask"]) == 0
    assert len(json.loads((out / "calibration.json").read_text())["samples"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "no/such/file.csv"], "There is no"),
        (["--samples", "0"], "At least 1 sample"),
        (["--model", "no/such/model"], "no/such/model"),
        (["--threshold", "nan", "--samples", "1"], "threshold"),
    ],
)
def test_errors_are_sentences(arguments, message, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["calibrate", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_what_is_skipped_is_said_on_the_error_stream(data, small_folder, tmp_path):
    ran = subprocess.run(
        [sys.executable, "-m", "vtw_demo", "calibrate", "--model", str(small_folder), "--data", str(data)],
        cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert "skipped data.jsonl, line 2: There is no picture" in ran.stderr


def test_from_the_shell():
    shown = subprocess.run(
        [sys.executable, "-m", "vtw_demo", "calibrate", "--help"], cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ | {"COLUMNS": "200"},
    ).stdout  # fmt: skip
    for option in (
        "--model",
        "--quantization",
        "--device",
        "--data",
        "--samples",
        "--threshold",
        "--strict",
        "--out",
        "--image-column",
        "--question-column",
        "--split",
    ):
        assert option in shown
