"""A small server that answers as the Hugging Face hub does, for models that are folders here, gated, or not there."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PORTS = range(7910, 7920)
NOBODY = "http://127.0.0.1:9"
"""Where nothing listens."""


class _Answers(BaseHTTPRequestHandler):
    """`models`: for each id its folder, or None where it is gated; `breaks_at`: bytes after which a file breaks off, or
    where it `stalls` doesn't go on."""

    models: Mapping[str, Path | None]
    breaks_at: int | None = None
    stalls: threading.Event | None = None
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
        content = file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{_oid(file)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            breaks = self.breaks_at is not None and len(content) > self.breaks_at
            self.wfile.write(content[: self.breaks_at] if breaks else content)
            if breaks and self.stalls is not None:
                self.wfile.flush()
                self.stalls.wait()

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


def _oid(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def ask_hub(monkeypatch: pytest.MonkeyPatch, cache: Path, address: str, offline: bool = False) -> None:
    """Let huggingface_hub ask another hub, as HF_ENDPOINT, HF_HUB_CACHE and HF_HUB_OFFLINE do when a process starts."""
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
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
    models: Mapping[str, Path | None], breaks_at: int | None = None, stalls: bool = False
) -> Iterator[tuple[str, list[str]]]:
    """Serve `models` inside a `with` block; gives the address, and a list of the paths that are asked for."""
    asked: list[str] = []
    over = threading.Event()
    settings = {"models": models, "breaks_at": breaks_at, "stalls": over if stalls else None, "asked": asked}
    answers = type("Answers", (_Answers,), settings)
    server = _listen(answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _listen(answers: type) -> ThreadingHTTPServer:
    for port in PORTS:
        try:
            return ThreadingHTTPServer(("127.0.0.1", port), answers)
        except OSError:
            continue
    raise OSError(f"No port from {PORTS.start} to {PORTS.stop - 1} is free.")
