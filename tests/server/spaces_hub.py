"""A small server that answers as the Hugging Face hub does for Spaces: made, described, sent to, and set up."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

# Put together here: what is sent is looked through for the token in use.
TOKEN = "-".join(("a", "token", "that", "writes"))
READS_ONLY = "-".join(("a", "token", "that", "reads"))
USER = "me"


@dataclass
class Space:
    """What a Space is on the hub."""

    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.safetensors filter=lfs\n"})
    variables: dict[str, str] = field(default_factory=dict)
    private: bool = False
    hardware: str | None = None
    sdk: str = ""
    commits: int = 0
    large: set[str] = field(default_factory=set)


class _Answers(BaseHTTPRequestHandler):
    """`refuses`: for a path's beginning the status, code and message with which it is refused."""

    spaces: dict[str, Space]
    stored: dict[str, bytes]
    asked: list[str]
    refuses: dict[str, tuple[int, str]]

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append(f"{self.command} {path}")
        for beginning, (status, message) in self.refuses.items():
            if f"{self.command} {path}".startswith(beginning):
                return self._refuse(status, message)
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body))
        if path.startswith("/stored/"):
            self.stored[path.removeprefix("/stored/")] = body
            return self._json({})
        user = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if user not in (TOKEN, READS_ONLY):
            return self._refuse(401, "Invalid credentials in Authorization header")
        if user == READS_ONLY and self.command != "GET":
            return self._refuse(403, "you must use a write token")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        name, rest = re.fullmatch(r"/(?:api/)?spaces/([^/]+/[^/.]+)(?:\.git)?(.*)", path).groups()
        space = self.spaces.get(name)
        if space is None:
            return self._refuse(401, "Invalid username or password.", "RepoNotFound")
        if not name.startswith(f"{USER}/") and self.command != "GET":
            return self._refuse(403, "you don't have the rights to write to this repository")
        self._of(space, name, rest, json.loads(body) if body and not rest.startswith("/commit") else body)

    def _of(self, space: Space, name: str, rest: str, said: Any) -> None:
        if rest in ("", "/revision/main"):
            return self._json({"id": name, "sha": f"{space.commits:040x}", "private": space.private, "sdk": space.sdk})
        if rest.startswith("/tree/"):
            files = [{"type": "file", "path": p, "size": len(c), "oid": _oid(c)} for p, c in space.files.items()]
            return self._json(files)
        if rest == "/variables":
            if self.command == "POST":
                space.variables[said["key"]] = said["value"]
            return self._json({key: {"value": value} for key, value in space.variables.items()})
        if rest == "/settings":
            space.private = said["visibility"] == "private"
            return self._json({})
        if rest == "/hardware":
            space.hardware = said["flavor"]
            return self._json({"stage": "BUILDING", "hardware": {"current": None, "requested": space.hardware}})
        if rest.startswith("/preupload/"):
            return self._json({"files": [self._way(space, file) for file in said["files"]]})
        if rest == "/info/lfs/objects/batch":
            address = f"http://127.0.0.1:{self.server.server_address[1]}/stored"
            objects = [
                {"oid": one["oid"], "size": one["size"], "actions": {"upload": {"href": f"{address}/{one['oid']}"}}}
                for one in said["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects})
        assert rest == "/commit/main", rest
        for line in said.splitlines():
            self._commit(space, **json.loads(line))
        space.commits += 1
        address = f"http://127.0.0.1:{self.server.server_address[1]}/spaces/{name}/commit/{space.commits}"
        self._json({"success": True, "commitOid": f"{space.commits:040x}", "commitUrl": address})

    def _way(self, space: Space, file: dict[str, Any]) -> dict[str, Any]:
        is_large = file["size"] > 10_000_000 or file["path"].endswith(".safetensors")
        there = space.files.get(file["path"])
        oid = there and (hashlib.sha256(there).hexdigest() if is_large else _oid(there))
        mode = "lfs" if is_large else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _commit(self, space: Space, key: str, value: dict[str, Any]) -> None:
        if key == "file":
            space.files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            space.files[value["path"]] = self.stored[value["oid"]]
            space.large.add(value["path"])
        elif key == "deletedFile":
            del space.files[value["path"]]

    def _create(self, said: dict[str, Any]) -> None:
        name = f"{said['organization']}/{said['name']}"
        if said["organization"] != USER:
            return self._refuse(403, f'You don\'t have the rights to create a space under the namespace "{name}"')
        assert said["type"] == "space"
        self.spaces[name] = Space(
            private=said.get("visibility") == "private", hardware=said.get("hardware"), sdk=said["sdk"]
        )
        self._json({"url": f"http://127.0.0.1:{self.server.server_address[1]}/spaces/{name}", "name": name})

    def _validate(self, said: dict[str, Any]) -> None:
        assert said["repoType"] == "space"
        read = yaml.safe_load(said["content"].split("---")[1])
        errors = []
        if len(read.get("short_description", "")) > 60:
            errors.append({"message": '"short_description" length must be less than or equal to 60 characters long'})
        if read.get("license") not in ("mit", "apache-2.0"):
            errors.append({"message": '"license" must be one of the hub\'s'})
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _json(self, content: Any, status: int = 200, **headers: str) -> None:
        encoded = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(encoded)

    def _refuse(self, status: int, message: str, code: str = "") -> None:
        self._json({"error": message}, status, X_Error_Message=message, **({"X_Error_Code": code} if code else {}))


@dataclass
class Hub:
    """`asked`: methods and paths in their order; `refuses`: for the beginning of such a line status and message."""

    address: str
    spaces: dict[str, Space]
    asked: list[str]
    refuses: dict[str, tuple[int, str]]

    def clear(self) -> None:
        for part in (self.spaces, self.asked, self.refuses):
            part.clear()


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def spaces_hub() -> Iterator[Hub]:
    """A hub without any Space, inside a `with` block."""
    parts: dict[str, Any] = {"spaces": {}, "stored": {}, "asked": [], "refuses": {}}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (_Answers,), parts))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        yield Hub(address, parts["spaces"], parts["asked"], parts["refuses"])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
