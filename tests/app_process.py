"""The real server, `python app.py`, as a process of its own on an address that only this machine reaches.

`python -m tests.app_process` measures how long it takes to its page, and to the first comparison after that.
"""

import ipaddress
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from gradio_client import Client, handle_file

from vtw_demo.benchmark.command import overheads_table
from vtw_demo.comparison.machine import this_machine
from vtw_demo.comparison.timing import Ratio
from vtw_demo.errors import UserError
from vtw_demo.models.loading import EMBEDDED

PROJECT = Path(__file__).resolve().parents[1]
PICTURE = PROJECT / "assets" / "examples" / "two-shapes.png"
LONGEST_START_SECONDS = 600.0
CLOSING_SECONDS = 10.0


@dataclass(frozen=True)
class AppProcess:
    """`start_seconds` passed from the process' start to its page."""

    url: str
    process: psutil.Popen
    start_seconds: float

    def end(self) -> str | None:
        """Send SIGTERM: None where it ends with exit code 0 within 10 s, else a sentence."""
        self.process.terminate()
        try:
            code = self.process.wait(CLOSING_SECONDS)
        except psutil.TimeoutExpired:
            return f"The server was still there {CLOSING_SECONDS:g} s after SIGTERM."
        return f"The server ended with exit code {code} after SIGTERM." if code else None


@contextmanager
def app_process(
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
) -> Iterator[AppProcess]:
    """Start the server and wait for its page; one that hasn't ended at the block's end is killed."""
    check_loopback(host)
    port = port or _free_port(host)
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    command = [sys.executable, str(PROJECT / "app.py"), *arguments, "--host", host, "--port", str(port)]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        start = time.perf_counter()
        process = psutil.Popen(
            command, cwd=PROJECT, stdout=log, stderr=subprocess.STDOUT, env=os.environ | (environment or {})
        )
        try:
            # Proxies of the environment are for other machines.
            with httpx.Client(trust_env=False, timeout=5) as http:
                while not _answers(http, url):
                    if process.poll() is not None or time.perf_counter() - start > LONGEST_START_SECONDS:
                        log.seek(0)
                        said = log.read().strip().splitlines()
                        raise OSError(f"The server didn't start: {said[-1] if said else 'it said nothing'}")
                    time.sleep(0.02)
            yield AppProcess(url, process, time.perf_counter() - start)
        finally:
            if process.is_running():
                process.kill()
                process.wait()


def check_loopback(host: str) -> None:
    """Raises UserError for an address that isn't this machine's own."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise UserError(f"The address {host!r} isn't known: {error}.") from error
    if not all(ipaddress.ip_address(address).is_loopback for address in found):
        raise UserError(f"A load test stays on this machine: {host!r} isn't a loopback address. Use 127.0.0.1.")


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])


def _answers(http: httpx.Client, url: str) -> bool:
    try:
        return http.get(url).is_success
    except httpx.HTTPError:
        return False


def measure_start(rounds: int, model: str = EMBEDDED, layer: int = 1, new_tokens: int = 16) -> tuple[Ratio, ...]:
    """Seconds from the start of a process to its page, and of the first comparison asked for through its API; then the
    same as a Space on free hardware, which takes the embedded model, at its first start."""
    usual = [_start(["--model", model], {}, layer, new_tokens) for _ in range(rounds)]
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
    caches = {name: str(Path(folder) / name.lower()) for name in names}
    return {"SYSTEM": "spaces", "SPACE_ID": "user/name", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", **caches}


def _start(arguments: list[str], environment: dict[str, str], layer: int, new_tokens: int) -> tuple[float, float]:
    with app_process(arguments, environment) as app:
        client = Client(app.url, verbose=False, download_files=False, analytics_enabled=False)
        start = time.perf_counter()
        client.predict(handle_file(PICTURE), "What is the blue thing?", layer, new_tokens, api_name="/compare")
        return app.start_seconds, time.perf_counter() - start


if __name__ == "__main__":
    print(this_machine())
    print(overheads_table(measure_start(rounds=3)))
