import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from vtw_demo.__main__ import main
from vtw_demo.embedded.scenes import draw, random_scene
from vtw_demo.evaluation import evaluation as module
from vtw_demo.evaluation.answering import answer_samples
from vtw_demo.measurements.equal_flops import RIVALS
from vtw_demo.plots.images import NO_BROWSER

ARGUMENTS = ["--device", "cpu", "--layers", "3,9-13", "--batch-size", "2"]


@pytest.fixture
def data(tmp_path):
    import random

    folder = tmp_path / "data"
    folder.mkdir()
    rows = []
    for number in range(3):
        scene = random_scene(random.Random(number), 1)
        draw(scene).save(folder / f"{number}.png")
        item = scene.objects[0]
        for kind, question, answer in (
            ("colour", "What color is the shape?", item.colour),
            ("shape", "What shape is in the picture?", f"The {item.shape}."),
        ):
            rows.append({"image": f"{number}.png", "question": question, "answer": answer, "kind": kind})
    rows.append({"image": "gone.png", "question": "What?", "answer": "nothing"})
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(autouse=True)
def model(small, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("BROWSER_PATH", "/no/such/browser")  # what draws a PNG takes its time
    monkeypatch.setattr("vtw_demo.evaluation.command.load_model", lambda options: small)
    monkeypatch.setattr("vtw_demo.evaluation.command.CALIBRATION_SAMPLES", 2)
    monkeypatch.setattr("vtw_demo.evaluation.evaluation.TIMED_PROMPTS", 1)
    monkeypatch.setattr("vtw_demo.evaluation.evaluation.TIMED_ROUNDS", 1)


def test_everything_in_one_run(vlm, data, tmp_path, capsys, monkeypatch, caplog):
    monkeypatch.setattr("vtw_demo.evaluation.command.load_model", lambda options: vlm)
    monkeypatch.delenv("BROWSER_PATH")
    out = tmp_path / "out"
    arguments = ["evaluate", "--data", str(data), *ARGUMENTS, "--out", str(out), "--ways", "--way-layers"]
    assert main([*arguments, "1", "9", "--attention-samples", "2"]) == 0
    said = capsys.readouterr()
    assert "Attention of the last prompt token, 2 questions" in said.out
    assert "There is no picture" in caplog.text
    assert "left out: fastv, K = 1: fastv drops its first tokens before layer 2" in said.err
    assert "100%" in said.err
    result = json.loads((out / "evaluation.json").read_text())
    assert {"machine", "date", "seed", "calibration", "bootstrap"} <= result.keys()
    assert result["attention"]["samples"] == 2
    assert len(result["attention"]["shares"]) == vlm.layers
    (measured,) = result["evaluations"]
    assert list(measured["figures"]) == ["colour", "shape", "all"]
    assert [way["way"] for way in measured["figures"]["all"]] == [
        *("full", "K = 1", "K = 3", "K = 9", "K = 10", "K = 11", "K = 12"),
        *("renumbered, K = 1", "renumbered, K = 9", "blind (K = 0)", "fastv, K = 9", "pyramid_drop, K = 9"),
        *("random_tokens, K = 1", "random_tokens, K = 9", "uniform_grid, K = 1", "uniform_grid, K = 9"),
        *("auto, above 0.98", "own K"),
    ]
    lines = [json.loads(line) for line in next(out.glob("answers-*.jsonl")).read_text().splitlines()[1:]]
    assert len(lines) == measured["samples"] == 6
    assert measured["pictures"] == 3
    full, *others = measured["figures"]["all"]
    assert (full["agreement"]["mean"], full["kl"]["mean"], full["flops_left"]) == (1, 0, 1)
    for way in (full, *others):
        of_samples = [line["ways"][way["way"]] for line in lines]
        assert way["accuracy"]["mean"] == pytest.approx(sum(one["score"] for one in of_samples) / 6)
        assert way["agreement"]["mean"] == pytest.approx(sum(one["agrees"] for one in of_samples) / 6)
        assert way["kl"]["mean"] == pytest.approx(sum(one["kl"] for one in of_samples) / 6)
        assert way["change"]["mean"] == pytest.approx(way["accuracy"]["mean"] - full["accuracy"]["mean"])
        assert way["accuracy"]["low"] <= way["accuracy"]["mean"] <= way["accuracy"]["high"]
        assert way["kind"] == "own" or measured["prefill"][way["way"]]["median_ms"] > 0
        if way["kind"] in ("auto", "own"):
            assert way["mean_layer"] == pytest.approx(sum(one["layer"] for one in of_samples) / 6)
            assert f"{way['way']}: K = {way['mean_layer']:.1f} ± {way['layer_deviation']:.1f}" in said.out
    assert full["accuracy"]["mean"] > 0.8
    left = {way["way"]: way["flops_left"] for way in others}
    assert left["K = 3"] < left["K = 9"] < left["K = 11"] < 1
    for rival in RIVALS:
        assert left[f"{rival}, K = 9"] == pytest.approx(left["K = 9"], abs=0.01)
    assert "| K = 9" in said.out
    assert "<script src=" not in (out / "evaluation.html").read_text()
    if NO_BROWSER not in said.err or os.environ.get("CI"):
        with Image.open(next(out.glob("*.png"))) as plot:
            assert plot.size == (1200, 675)
            assert len(plot.convert("RGB").getcolors(1 << 24)) > 50
    assert len(next(out.glob("*.csv")).read_text().splitlines()) == 1 + 3 * 18


def test_a_stopped_evaluation_goes_on(data, tmp_path, capsys, monkeypatch):
    asked = []

    def stopping(vlm, samples, ways, *rest):
        if asked:
            raise KeyboardInterrupt
        return noting(vlm, samples, ways, *rest)

    def noting(vlm, samples, ways, *rest):
        asked.append((len(samples), [way.name for way in ways]))
        return answer_samples(vlm, samples, ways, *rest)

    monkeypatch.setattr(module, "BATCHES_AT_ONCE", 1)
    monkeypatch.setattr(module, "answer_samples", stopping)
    arguments = ["evaluate", "--data", str(data), *ARGUMENTS, "--out", str(tmp_path / "out")]
    assert main(arguments) == 130
    assert "the same command goes on there" in capsys.readouterr().err
    monkeypatch.setattr(module, "answer_samples", noting)
    assert main(arguments) == 0
    assert [count for count, _ in asked] == [2, 2, 2]
    first = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    del asked[:]
    assert main(arguments) == 0
    assert not asked
    assert (
        json.loads((tmp_path / "out" / "evaluation.json").read_text())["evaluations"][0]["figures"]
        == (first["evaluations"][0]["figures"])
    )
    # Further layers: only they are answered.
    assert main([*arguments, "--layers", "5", "9"]) == 0
    assert {tuple(ways) for _, ways in asked} == {("full", "K = 5")}
    # A picture that has changed since is asked about again.
    del asked[:]
    Image.new("RGB", (64, 64), "red").save(data / "0.png")
    assert main([*arguments, "--layers", "9"]) == 0
    assert [count for count, _ in asked] == [2]


def test_some_questions_are_asked_in_every_way_and_all_in_two(data, tmp_path, capsys):
    out = tmp_path / "out"
    asked = ["evaluate", "--data", str(data), *ARGUMENTS, "--out", str(out), "--curve-samples", "2"]
    assert main([*asked, "--ways", "blind"]) == 0
    some, every = json.loads((out / "evaluation.json").read_text())["evaluations"]
    assert (some["samples"], every["samples"], every["answered"]) == (2, 6, 4)
    assert [way["kind"] for way in every["figures"]["all"]] == ["full", "withdrawn"]
    assert {way["way"] for way in every["figures"]["all"]} <= {way["way"] for way in some["figures"]["all"]}
    assert "blind (K = 0)" in {way["way"] for way in some["figures"]["all"]}


def test_answers_of_another_evaluation_are_not_mixed(data, tmp_path, capsys):
    arguments = ["evaluate", "--data", str(data), *ARGUMENTS, "--out", str(tmp_path / "out"), "--samples", "1"]
    assert main(arguments) == 0
    assert main([*arguments, "--max-new-tokens", "5"]) == 2
    assert "max_new_tokens was 32, and is 5. Choose another folder with --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "bad",
    [
        '{"image": "0.png", "question": "Which \\ud83d?", "answer": "red"}',
        '{"image": "0.png", "question": "Which?", "answer": "red \\udfff"}',
        json.dumps({"image": "0.png", "question": "\u200b", "answer": "red"}),
        json.dumps({"image": "0.png", "question": "star " * 6000, "answer": "red"}),
        json.dumps({"image": "0.png", "question": "star " * 1830, "answer": "red"}),  # with the picture and the answer
    ],
)
def test_a_row_that_cant_be_asked_stops_nothing(data, tmp_path, capsys, caplog, bad):
    good = (data / "data.jsonl").read_text().splitlines()[:2]
    (data / "other.jsonl").write_text("\n".join([good[0], bad, good[1]]))
    asked = ["evaluate", "--data", str(data / "data.jsonl"), str(data / "other.jsonl"), *ARGUMENTS, "--out"]
    assert main([*asked, str(tmp_path / "out")]) == 0
    assert "skipped other.jsonl, line 2: " in caplog.text
    measured = json.loads((tmp_path / "out" / "evaluation.json").read_text())["evaluations"]
    assert [one["samples"] for one in measured] == [6, 2]
    (data / "data.jsonl").write_text(good[0])
    assert main([*asked, str(tmp_path / "strict"), "--strict"]) == 2
    assert "has 1 bad row: other.jsonl, line 2: " in capsys.readouterr().err
    assert not (tmp_path / "strict").exists()


@pytest.mark.parametrize("mended", [False, True])
def test_answers_that_cant_be_written_are_held_and_told(data, tmp_path, capsys, monkeypatch, mended):
    parts = []

    def obstructed(vlm, samples, ways, *rest):
        (file,) = (tmp_path / "out").glob("answers-*")
        parts.append(len(samples))
        if len(parts) == 1:
            file.unlink()
            file.mkdir()
        elif mended and len(parts) == 2:
            file.rmdir()
        return answer_samples(vlm, samples, ways, *rest)

    monkeypatch.setattr(module, "BATCHES_AT_ONCE", 1)
    monkeypatch.setattr(module, "answer_samples", obstructed)
    code = main(["evaluate", "--data", str(data), *ARGUMENTS, "--out", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert parts == [2, 2, 2]
    assert "| K = 9" in said.out
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["evaluations"][0]["samples"] == 6
    if mended:
        assert code == 0
        lines = next((tmp_path / "out").glob("answers-*")).read_text().splitlines()
        assert len(lines) == 7
        assert "depends_on" in json.loads(lines[0])
    else:
        assert code == 2
        assert "error: Answers can't be kept in " in said.err
        assert "Is a directory" in said.err


def test_where_nothing_can_be_written_nothing_is_asked(data, tmp_path, capsys):
    assert main(["evaluate", "--data", str(data), *ARGUMENTS, "--out", str(data / "0.png" / "out")]) == 2
    said = capsys.readouterr()
    assert "Not a directory" in said.err
    assert said.out == ""


def test_names_that_a_terminal_cant_show_lose_nothing(data, small_folder, tmp_path):
    odd, out = data.with_name("odd \udce9"), tmp_path / "out \udce9"
    data.rename(odd)
    asked = ["--model", str(small_folder), "--data", str(odd), "--layers", "9", "--out", str(out), "--samples", "2"]
    ran = subprocess.run(
        [sys.executable, "-m", "vtw_demo", "evaluate", *asked, "--device", "cpu"],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        capture_output=True,
        check=True,
    )
    assert b"odd \\udce9: 2 questions" in ran.stdout
    assert {"evaluation.json", "evaluation.md", "evaluation.html"} <= set(os.listdir(out))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "14"], "Layers go from 1 to 13"),
        (["--layers", "x"], "Layers are numbers or ranges"),
        (["--samples", "0"], "At least 1 sample"),
        (["--curve-samples", "0"], "At least 1 sample"),
        (["--batch-size", "0"], "at least 1 question"),
        (["--replicas", "0"], "At least 1 replica is needed; 0 were asked for"),
        (["--replicas", "-1"], "At least 1 replica is needed; -1 were asked for"),
        (["--ray", "auto"], "--ray auto is where replicas run: say how many with --replicas"),
        (["--data", "no/such/thing"], "can't be read"),
        (["--answer-column", "gold"], "gold"),
        (["--ways", "fastv", "--way-layers", "14"], "Layers go from 1 to 13"),
        (["--ways", "fastv", "--way-layers", "13"], "at layers from 1 to 12; --way-layers names none of them"),
        (["--way-layers", "8"], "--way-layers says where other ways do it: name these with --ways"),
        (["--thresholds", "0.9"], "--thresholds are those of auto: name it with --ways"),
        (["--ways", "own", "--thresholds", "0.9"], "--thresholds are those of auto: name it with --ways"),
        (["--ways", "auto", "--thresholds", "nan"], "The threshold is one of cosines; this is nan"),
    ],
)
def test_errors(data, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    given = ["evaluate", "--data", str(data), *ARGUMENTS, "--out", str(tmp_path / "out"), *arguments]
    assert main(given) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--replicas", "x"], "--replicas: invalid int value: 'x'"),
        (["--ways", "fast"], "--ways: invalid choice: 'fast' (choose from "),
        (["--thresholds", "high"], "--thresholds: invalid float value: 'high'"),
    ],
)
def test_what_cant_be_read_is_named(capsys, arguments, message):
    with pytest.raises(SystemExit):
        main(["evaluate", *arguments])
    assert message in capsys.readouterr().err


def test_ways_thresholds_and_their_layers_are_those_named(data, tmp_path, capsys):
    out = tmp_path / "out"
    asked = ["evaluate", "--data", str(data), "--device", "cpu", "--samples", "2", "--out", str(out), "--layers", "3"]
    given = ["--ways", "auto", "uniform_grid", "own", "--way-layers", "5-6", "--thresholds", "0.5", "2"]
    assert main([*asked, *given]) == 0
    (measured,) = json.loads((out / "evaluation.json").read_text())["evaluations"]
    ways = {way["way"]: way for way in measured["figures"]["all"]}
    assert list(ways) == [
        *("full", "K = 3", "K = 5", "K = 6", "auto, above 0.5", "auto, above 2.0"),
        *("uniform_grid, K = 5", "uniform_grid, K = 6", "own K"),
    ]
    assert (ways["auto, above 2.0"]["mean_layer"], ways["auto, above 2.0"]["agreement"]["mean"]) == (13, 1)
    assert 2 <= ways["auto, above 0.5"]["mean_layer"] <= 13
    assert "own K" not in measured["prefill"]  # whose K a sweep has to find
