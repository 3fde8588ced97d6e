"""The real server, `python app.py` with the embedded model, as a process that only this machine can reach."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from vtw_demo.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
START_SECONDS = 180.0
CLOSING_SECONDS = 10.0


@dataclass(frozen=True)
class Server:
    """`uploads` is the folder in which it keeps visitors' pictures."""

    url: str
    process: psutil.Popen
    uploads: Path

    def resident_bytes(self) -> int:
        """The memory that it holds, with its children's."""
        return sum(process.memory_info().rss for process in (self.process, *self.process.children(recursive=True)))

    def uploaded(self) -> tuple[int, int]:
        """How many files of visitors it keeps, and their bytes."""
        sizes = [path.stat().st_size for path in self.uploads.rglob("*") if path.is_file()]
        return len(sizes), sum(sizes)

    def end(self) -> str | None:
        """Send SIGTERM: None where it ends with exit code 0 within 10 s, else a sentence."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(CLOSING_SECONDS)
        except (subprocess.TimeoutExpired, psutil.TimeoutExpired):
            return f"The server was still there {CLOSING_SECONDS:g} s after SIGTERM."
        return f"The server ended with exit code {code} after SIGTERM." if code else None


@contextmanager
def serve(host: str = "127.0.0.1", port: int | None = None) -> Iterator[Server]:
    """Start the server, with a cache and an upload folder of its own that are deleted at the end.

    A server that hasn't ended by then is killed. Raises ValueError for a host that other machines reach, and OSError
    where it doesn't start.
    """
    check_loopback(host)
    port = port or _free_port(host)
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    with tempfile.TemporaryDirectory(prefix="vtw-loadtest-") as name:
        folder = Path(name)
        environment = os.environ | {
            "GRADIO_TEMP_DIR": str(folder / "uploads"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "HF_HUB_OFFLINE": "1",
            "no_proxy": host,
        }
        with (folder / "log").open("wb") as log:
            process = psutil.Popen(
                [sys.executable, str(ROOT / "app.py"), "--host", host, "--port", str(port)],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        try:
            _wait_for_start(process, url, folder / "log")
            yield Server(url, process, folder / "uploads")
        finally:
            if process.is_running():
                process.kill()
                process.wait()


def check_loopback(host: str) -> None:
    """Raises ValueError for an address that isn't this machine's own."""
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


def _wait_for_start(process: psutil.Popen, url: str, log: Path) -> None:
    no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            no_proxy.open(f"{url}/config", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None:
                break
            time.sleep(0.3)
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    raise OSError(f"The server didn't start: {said[-1] if said else 'it said nothing'}")
