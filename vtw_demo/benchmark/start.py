"""How long `python app.py` takes to its page, and the first comparison after that."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from gradio_client import Client, handle_file

from vtw_demo.benchmark.rounds import Ratio
from vtw_demo.models import EMBEDDED

PROJECT = Path(__file__).resolve().parents[2]
PICTURE = PROJECT / "assets" / "examples" / "two-shapes.png"
LONGEST_START_S = 600.0


def measure_start(rounds: int, model: str = EMBEDDED, layer: int = 1, new_tokens: int = 16) -> tuple[Ratio, ...]:
    """Seconds from the start of a process to its page, and of the first comparison asked for through its API.

    Raises RuntimeError where the page doesn't come.
    """
    pages, comparisons = [], []
    for _ in range(rounds):
        page, comparison = _start(model, layer, new_tokens)
        pages.append(page)
        comparisons.append(comparison)
    return (
        Ratio("start of app.py to the page, in s", tuple(pages), 8.0),
        Ratio("first comparison after that, in s", tuple(comparisons), 3.0),
    )


def _start(model: str, layer: int, new_tokens: int) -> tuple[float, float]:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    command = [sys.executable, str(PROJECT / "app.py"), "--model", model, "--host", "127.0.0.1", "--port", str(port)]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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
