import os
import subprocess
import sys
from pathlib import Path

import pytest

from vtw_demo.page.command_line import build_parser, main

ROOT = Path(__file__).parents[2]


def test_help_names_every_option():
    shown = subprocess.run(
        [sys.executable, "app.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ | {"COLUMNS": "200"},
    ).stdout  # fmt: skip
    for option in (
        "--model",
        "--revision",
        "--quantization",
        "--quantize-all",
        "--device",
        "--host",
        "--port",
        "--share",
        "--layer",
    ):
        assert option in shown


def test_which_model_runs_and_why_is_said_in_one_line(caplog):
    caplog.set_level("INFO", "vtw_demo")
    for arguments, expected in (
        (
            ["--device", "cpu"],
            "Running the embedded model, not llava-hf/llava-1.5-7b-hf: it is slow without a CUDA GPU,",
        ),
        (["--device", "cpu", "--model", "embedded"], "Running embedded. Nothing is quantized: all weights are "),
        (["--device", "cpu", "--model", "embedded", "--quantization", "8bit"], "decoder layers are held in 8 bits"),
    ):
        caplog.clear()
        assert main([*arguments, "--layer", "99"]) == 2
        (said,) = [record.getMessage() for record in caplog.records if record.name == "vtw_demo.page.command_line"]
        assert expected in said
        assert "\n" not in said


def test_what_is_not_asked_for_has_a_default():
    options = build_parser().parse_args([])
    assert (options.model, options.share, options.layer, options.port) == (None, False, None, None)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--layer", "99"], "12"),
        (["--layer", "0"], "leave the picture out"),
        (["--model", "no/such/folder"], "no/such/folder"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_what_keeps_it_from_starting_is_said_in_a_sentence(arguments, expected, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "VTW Demo can't start:" in error
    assert expected in error
    assert "Traceback" not in error
