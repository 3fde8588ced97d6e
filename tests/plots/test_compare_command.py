import json
import os

import numpy as np
import pytest
from markupsafe import escape

from tests.bad_input import encoded, high_efficiency, planes, png_with_notes, scene
from vtw_demo.__main__ import main
from vtw_demo.comparison.compare import compare
from vtw_demo.measurements.equal_flops import recipe_in_words
from vtw_demo.plots.second_question import second_question_reading


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
    assert written["verdict"] in shown
    assert "Median of 2 rounds" in written["verdict"]
    assert len(written["timing"]["full"]["prefill_ms"]) == 2
    assert written["comparison"]["question"] in report.read_text(encoding="utf-8")


def test_a_third_answer_beside_both(image, tmp_path, capsys):
    report, data = tmp_path / "out.html", tmp_path / "out.json"
    asked = ["--image", str(image), "--question", "What is in the picture?", "--layer", "9", "--device", "cpu"]
    assert main(["compare", *asked, "--beside", "uniform_grid", "--report", str(report), "--json", str(data)]) == 0
    shown, written = capsys.readouterr().out, json.loads(data.read_text())
    recipe = written["comparison"]["recipe"]
    assert f"beside it, by {recipe}:" in shown
    assert f"Beside it, {recipe_in_words(recipe)}:" in written["verdict"]
    assert report.read_text(encoding="utf-8").count('class="answer-card') == 3


def test_the_prefill_chooses_the_layer(image, tmp_path, capsys):
    report, data = tmp_path / "out.html", tmp_path / "out.json"
    asked = ["--image", str(image), "--question", "What is in the picture?", "--layer", "auto", "--device", "cpu"]
    assert main(["compare", *asked, "--rounds", "1", "--report", str(report), "--json", str(data)]) == 0
    shown, written = capsys.readouterr().out, json.loads(data.read_text())
    layer = written["comparison"]["layer"]
    assert 2 <= layer <= 13
    assert written["comparison"]["layer_is_automatic"]
    assert written["timing"]["layer"] == written["staircase"]["layer"] == layer
    assert written["comparison"]["withdrawn"]["chosen_layer"] == layer
    assert f"layer {layer} was chosen by the prefill" in shown
    assert f"withdrawn at layer {layer}, chosen by the prefill" in report.read_text(encoding="utf-8")


@pytest.mark.parametrize("layer", ["4", "auto"])
def test_then_goes_on_with_a_second_question(vlm, image, tmp_path, capsys, layer):
    report, data, then = tmp_path / "out.html", tmp_path / "out.json", "How many things are there?"
    asked = ["--image", str(image), "--question", "What is in the picture?", "--layer", layer, "--device", "cpu"]
    asked += ["--max-new-tokens", "4", "--report", str(report), "--json", str(data)]
    assert main(["compare", *asked, "--then", then]) == 0
    shown, written = capsys.readouterr().out, json.loads(data.read_text())
    layer = written["comparison"]["layer"]
    *_, first = compare(vlm, image, "What is in the picture?", layer, 4)
    *_, expected = compare(vlm, image, then, layer, 4, history=first)
    found, answers = written["follow_up"], [expected.full.answer, expected.withdrawn.answer, expected.fresh.answer]
    assert found["question"] == then
    assert [found[run]["answer"] for run in ("full", "withdrawn", "fresh")] == answers
    reading = second_question_reading(expected)
    assert shown.splitlines()[-6:-2] == [
        f"{'full, goes on with its cache:':<42}{answers[0]}",
        f"{f'withdrawn at {layer}, goes on with its cache:':<42}{answers[1]}",
        f"{'full, reads all of it again:':<42}{answers[2]}",
        reading,
    ]
    assert escape(reading) in report.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--then": " "}, "question is empty"),
        ({"--beside": "vtw"}, "this is 'vtw'"),
        ({"--layer": "14"}, "from 1 to 13"),
        ({"--layer": "auto", "--beside": "fastv"}, "unknown before the prefill has chosen the layer"),
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


@pytest.mark.parametrize(
    "content", [high_efficiency, lambda: encoded(scene(), "AVIF"), png_with_notes], ids=["HEIC", "AVIF", "PNG"]
)
def test_pictures_of_phones_and_image_generators(content, tmp_path, capsys):
    file = tmp_path / "IMG_0001.HEIC"
    file.write_bytes(content())
    asked = ["--question", "What is in the picture?", "--layer", "9", "--max-new-tokens", "2", "--device", "cpu"]
    assert main(["compare", "--image", str(file), *asked]) == 0
    assert "FLOPs" in capsys.readouterr().out


def test_what_is_no_picture_is_told_before_a_model_is_loaded(tmp_path, capsys):
    (tmp_path / "planes.tiff").write_bytes(planes(np.uint16))
    (tmp_path / "link").symlink_to(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "pipe")
    for name, said in (
        ("", "is a folder"),
        ("link", "is a link to"),
        ("pipe", "is a pipe"),
        ("/dev/zero", "a device"),
        ("planes.tiff", "save it in 8 bits"),
        ("gone.png", "There is no picture"),
    ):
        asked = ["--image", str(tmp_path / name), "--question", "What?", "--layer", "6", "--model", "no/such/folder"]
        assert main(["compare", *asked]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
