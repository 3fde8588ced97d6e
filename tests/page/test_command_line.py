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
    for option in ("--model", "--quantization", "--device", "--host", "--port", "--share", "--layer"):
        assert option in shown


def test_what_is_not_asked_for_has_a_default():
    options = build_parser().parse_args([])
    assert (options.model, options.share, options.layer, options.port) == ("embedded", False, None, None)


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
