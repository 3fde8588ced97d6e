"""Commands as a shell starts them: what `--help` says, what is refused before any work, and how they end."""

import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from vtw_demo.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[1]
PICTURE = str(ROOT / "assets" / "examples" / "two-shapes.png")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_defaults_that_are_some(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "default: None" not in said
    assert "default: False" not in said
    if command == "calibrate":
        assert "how many samples to measure at most (default: 20)" in said


@pytest.fixture
def no_model(monkeypatch):
    def load_for_nothing(*_):
        raise AssertionError("The model was loaded for nothing.")

    for module in ("plots.compare_command", "benchmark.command"):
        name = "load_model" if module.startswith("plots") else "_subject"
        monkeypatch.setattr(f"vtw_demo.{module}.{name}", load_for_nothing)


def compare(*more, image=PICTURE):
    return ["compare", "--image", image, "--question", "What?", "--layer", "3", *more]


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (compare("--report", "TMP/none/report.html"), r"none/report\.html can't be written: No such file or directory"),
        (compare("--json", "TMP"), "can't be written: it is a folder"),
        (compare("--report", f"TMP/{'a' * 300}"), "can't be written: File name too long"),
        (compare("--report", "TMP/file/report.html"), r"can't be written: (Not a directory|No such file)"),
        (compare(image="TMP/gone.png"), r"There is no picture '.*/gone\.png'"),
        (compare(image="TMP/gone.mp4"), r"There is no picture '.*/gone\.mp4'"),
        (compare(image="TMP"), "is a folder"),
        (["bench", "--json", "TMP/none/bench.json"], r"none/bench\.json can't be written"),
        (["bench", "--plot", "TMP"], "can't be written: it is a folder"),
    ],
)
def test_what_cannot_be_read_or_written_is_told_before_the_run(asked, sentence, tmp_path, capsys, no_model):
    (tmp_path / "file").touch()
    assert main([part.replace("TMP", str(tmp_path)) for part in asked]) == 2
    assert re.search(sentence, capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_benchmark_shows_how_far_it_is_and_ends_with_ctrl_c():
    reading, writing = pty.openpty()
    termios.tcsetwinsize(writing, (24, 80))
    command = [sys.executable, "-m", "vtw_demo", "bench", "--model", "embedded", "--layers", "6", "--rounds", "50"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=writing, start_new_session=True,
        # What a shell starts in the background ignores it, and so do the programs that this starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    os.close(writing)
    said = []

    def read():
        # To the end: a program waits for its terminal's reader.
        with suppress(OSError):
            while True:
                said.append(os.read(reading, 1024))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while b"answers:" not in b"".join(said):
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(1)  # in the middle of a run
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130  # all of its rounds take longer
    finally:
        process.kill()
        reader.join()
        os.close(reading)


def test_readmes_library_snippets_run_as_they_stand(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("heart\n")
