"""How long `python app.py` takes to its page, and the first comparison after that."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from gradio_client import Client, handle_file

from vtw_demo.comparison.timing import Ratio
from vtw_demo.models.loading import EMBEDDED

PROJECT = Path(__file__).resolve().parents[2]
PICTURE = PROJECT / "assets" / "examples" / "two-shapes.png"
LONGEST_START_S = 600.0


def measure_start(rounds: int, model: str = EMBEDDED, layer: int = 1, new_tokens: int = 16) -> tuple[Ratio, ...]:
    """Seconds from the start of a process to its page, and of the first comparison asked for through its API; then the
    same as a Space on free hardware, which takes the embedded model, at its first start.

    Raises RuntimeError where the page doesn't come.
    """
    arguments = ["--model", model, "--host", "127.0.0.1"]
    usual = [_start(arguments, {}, layer, new_tokens) for _ in range(rounds)]
    cold = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            cold.append(_start([], _new_space(folder), layer, new_tokens))
    return (
        Ratio("start of app.py to the page, in s", tuple(page for page, _ in usual), 8.0),
        Ratio("first comparison after that, in s", tuple(comparison for _, comparison in usual), 3.0),
        Ratio("start as a Space with nothing in any cache, in s", tuple(page for page, _ in cold)),
        Ratio("first comparison after that, too, in s", tuple(comparison for _, comparison in cold)),
    )


def _new_space(folder: str) -> dict[str, str]:
    """The environment of a Space without a GPU that has never run: each cache folder is empty, bytecode's as well."""
    names = ("HOME", "XDG_CACHE_HOME", "HF_HOME", "MPLCONFIGDIR", "PYTHONPYCACHEPREFIX", "GRADIO_TEMP_DIR")
    return {
        "SYSTEM": "spaces",
        "SPACE_ID": "user/name",
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "CUDA_VISIBLE_DEVICES": "",
        **{name: str(Path(folder) / name.lower()) for name in names},
    }


def _start(
    arguments: Sequence[str], environment: Mapping[str, str], layer: int, new_tokens: int
) -> tuple[float, float]:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    command = [sys.executable, str(PROJECT / "app.py"), *arguments, "--port", str(port)]
    start = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | environment
    )
    try:
        while not _answers(address):
            if process.poll() is not None or time.perf_counter() - start > LONGEST_START_S:
                raise RuntimeError(f"The page didn't come: run {' '.join(command)} to see why.")
            time.sleep(0.02)
        page = time.perf_counter() - start
        client = Client(address, verbose=False)
        start = time.perf_counter()
        client.predict(handle_file(PICTURE), "What is the blue thing?", layer, new_tokens, api_name="/compare")
        return page, time.perf_counter() - start
    finally:
        process.terminate()
        process.wait()


def _answers(address: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False
