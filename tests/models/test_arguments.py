import argparse

import pytest

from tests import saved_models
from vtw_demo import load
from vtw_demo.__main__ import main
from vtw_demo.models.arguments import add_model_arguments, chosen_model, load_model
from vtw_demo.models.loading import ModelChoice
from vtw_demo.page.command_line import build_parser

VARIABLES = {
    "VTW_MODEL": "a/b",
    "VTW_REVISION": "v2",
    "VTW_QUANTIZATION": "8bit",
    "VTW_QUANTIZE_ALL": "1",
    "VTW_DEVICE": "cuda:1",
}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in (*VARIABLES, "VTW_LAYER", "VTW_PICTURE_DETAIL"):
        monkeypatch.delenv(name, raising=False)


def options(*arguments, default_model="embedded"):
    parser = argparse.ArgumentParser()
    add_model_arguments(parser, default_model)
    return parser.parse_args(arguments)


def test_each_choice_can_be_made_by_an_environment_variable(monkeypatch):
    assert chosen_model(options()).name == "embedded"
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    assert chosen_model(options()) == ModelChoice("a/b", "8bit", "cuda:1", "v2", True)
    monkeypatch.setenv("VTW_QUANTIZE_ALL", "0")
    by_options = ("--model", "c/d", "--revision", "main", "--quantization", "none", "--device", "cpu")
    assert chosen_model(options(*by_options)) == ModelChoice("c/d", None, "cpu", "main")


def test_the_page_takes_them_too(monkeypatch):
    assert build_parser().parse_args([]).model is None
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VTW_LAYER", "7")
    parsed = build_parser().parse_args([])
    assert (parsed.layer, chosen_model(parsed).name) == (7, "a/b")
    assert build_parser().parse_args(["--layer", "3"]).layer == 3


def test_a_variable_that_means_nothing_is_named(monkeypatch, capsys):
    monkeypatch.setenv("VTW_QUANTIZATION", "5bit")
    arguments = ["compare", "--image", "assets/examples/two-shapes.png", "--question", "What?", "--layer", "3"]
    assert main(arguments) == 2
    assert "Unknown quantization '5bit': choose 4bit, 8bit or none." in capsys.readouterr().err
    monkeypatch.setenv("VTW_LAYER", "seven")
    with pytest.raises(SystemExit):
        build_parser().parse_args([])
    assert "K must be a whole number (--layer or VTW_LAYER); this is 'seven'." in capsys.readouterr().err


def test_the_picture_detail_is_an_option_and_a_variable(monkeypatch, capsys, tmp_path):
    saved_models.save("smolvlm", tmp_path)
    folder = ("--model", str(tmp_path), "--device", "cpu")
    monkeypatch.setenv("VTW_PICTURE_DETAIL", "low")
    assert load_model(options(*folder)).picture_detail == "low"
    assert load_model(options(*folder, "--picture-detail", "high")).picture_detail == "high"
    monkeypatch.setenv("VTW_PICTURE_DETAIL", "tiny")
    arguments = ["compare", "--image", "assets/examples/two-shapes.png", "--question", "What?", "--layer", "3"]
    assert main(arguments) == 2
    assert "Unknown picture detail 'tiny': choose low, usual or high." in capsys.readouterr().err
    with pytest.raises(ValueError, match="Unknown picture detail 'tiny'"):
        load("embedded", picture_detail="tiny")


def test_a_folder_loads_as_the_options_say(tmp_path):
    saved_models.save("llava", tmp_path, as_on_hub=True)
    vlm = load_model(options("--model", str(tmp_path), "--quantization", "4bit", "--device", "cpu", "--quantize-all"))
    assert vlm.precision == "4-bit throughout"
    assert vlm.revision.startswith("files-")
