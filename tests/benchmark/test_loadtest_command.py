"""The load test's short form, against the real server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vtw_demo.__main__ import main

ROOT = Path(__file__).parents[2]


def test_visitors_get_what_they_get_alone_and_memory_stays(tmp_path):
    file = tmp_path / "load.json"
    asked = ["--clients", "10", "--seconds", "5", "--comparisons", "100", "--json", str(file)]
    # A process of its own, as users start it: it has an event loop, and browser tests hold the one of this process.
    command = [sys.executable, "-m", "vtw_demo", "loadtest", *asked]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every bar is met." in done.stdout
    found = json.loads(file.read_text())
    load = found["load"]
    assert load["browsers"] == 1
    assert load["distinct"] == 20
    assert load["sent"] == len(load["answer_seconds"]) >= 10
    assert (load["wrong"], load["lost"]) == ([], [])
    assert [reading["comparisons"] for reading in found["memory"]["readings"]] == [50, 100]
    assert found["machine"]
    assert found["missed"] == []


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (["--clients", "0"], "from 1 to 1000 clients; this is 0"),
        (["--seconds", "-1"], "from 0 to 3600; this is -1"),
        (["--comparisons", "-5"], "from 50 comparisons on: ask for more; this is -5"),
        (["--seconds", "0", "--comparisons", "50"], "from 50 comparisons on: ask for more; this is 50"),
        (["--host", "0.0.0.0"], "isn't a loopback address"),
    ],
)
def test_what_it_cannot_do_is_said(asked, sentence, capsys):
    assert main(["loadtest", *asked]) == 2
    assert sentence in capsys.readouterr().err
