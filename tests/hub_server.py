"""A small server that answers as the Hugging Face hub does, for models that are folders here, gated, or not there."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import close_session, constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NOBODY = "http://127.0.0.1:9"
"""Where nothing listens."""


class _Answers(BaseHTTPRequestHandler):
    """`models`: for each id its folder, or None where it is gated; `breaks_at`: bytes after which a file breaks off, or
    where it `stalls` waits for that, and then `goes_on` or breaks off."""

    models: Mapping[str, Path | None]
    breaks_at: int | None = None
    stalls: threading.Event | None = None
    goes_on: threading.Event | None = None
    asked: list[str]

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(path)
        parts = path.strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if is_api else parts[:2])
        if name not in self.models:
            return self._refuse(401, "RepoNotFound", "Invalid username or password.")
        folder = self.models[name]
        if is_api and parts[4:5] == ["revision"] and parts[5:] not in ([COMMIT], ["main"]):
            return self._refuse(404, "RevisionNotFound", "Invalid rev id")
        files = [] if folder is None else sorted(path for path in folder.iterdir() if path.is_file())
        if is_api and parts[4:5] == ["tree"]:
            listed = [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": _oid(p)} for p in files]
            return self._json(listed or [{"type": "file", "path": "config.json", "size": 2, "oid": "0" * 40}], body)
        if is_api:
            return self._json({"id": name, "sha": COMMIT, "private": False, "tags": [], "siblings": []}, body)
        if folder is None:
            return self._refuse(403, "GatedRepo", f"Access to model {name} is restricted.")
        file = folder / parts[-1]
        if not file.is_file():
            return self._refuse(404, "EntryNotFound", "Entry not found")
        size = file.stat().st_size
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.send_header("ETag", f'"{_oid(file)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            breaks = self.breaks_at is not None and size > self.breaks_at
            with file.open("rb") as content:
                if not breaks:
                    return shutil.copyfileobj(content, self.wfile)
                self.wfile.write(content.read(self.breaks_at))
                if self.stalls is not None:
                    self.wfile.flush()
                    self.stalls.wait()
                    if self.goes_on is not None and self.goes_on.is_set():
                        shutil.copyfileobj(content, self.wfile)
        return None

    def _json(self, content: Any, body: bool) -> None:
        encoded = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        if body:
            self.wfile.write(encoded)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()


@functools.cache
def _sha1(path: Path, changed: int) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha1").hexdigest()


def _oid(path: Path) -> str:
    return _sha1(path, path.stat().st_mtime_ns)


def ask_hub(monkeypatch: pytest.MonkeyPatch, cache: Path, address: str, offline: bool = False) -> None:
    """Let huggingface_hub ask another hub, in this process and in those that it starts."""
    close_session()  # another test's may ask its proxy
    for name, value in {
        "HF_TOKEN": "",
        "NO_PROXY": "127.0.0.1",
        "HF_ENDPOINT": address,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1" if offline else "",
        "HF_HUB_DISABLE_XET": "1",
    }.items():
        monkeypatch.setenv(name, value)
    files = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    for name, value in {
        "ENDPOINT": address,
        "HUGGINGFACE_CO_URL_TEMPLATE": files,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": offline,
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(constants, name, value)


@contextmanager
def hub_server(
    models: Mapping[str, Path | None],
    breaks_at: int | None = None,
    stalls: bool = False,
    goes_on: threading.Event | None = None,
) -> Iterator[tuple[str, list[str]]]:
    """Serve `models` inside a `with` block; gives the address, and a list of the paths that are asked for. A file that
    stalls goes on once `goes_on` is set."""
    asked: list[str] = []
    over = threading.Event()
    stalled = goes_on or (over if stalls else None)
    settings = {"models": models, "breaks_at": breaks_at, "stalls": stalled, "goes_on": goes_on, "asked": asked}
    answers = type("Answers", (_Answers,), settings)
    # The port that the system gives: one that another hub just left is still asked by who downloads from that one.
    server = ThreadingHTTPServer(("127.0.0.1", 0), answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        (stalled or over).set()
        server.shutdown()
        server.server_close()
        thread.join()
