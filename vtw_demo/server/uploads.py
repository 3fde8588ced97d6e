"""Files that visitors send, in a folder of this server's own: each is kept as long as a session uses it.

Gradio's `delete_cache` deletes by age alone, also what an open page still shows, and keeps until then what a session
that has ended leaves; its MCP server reads addresses that it is given. In tests/server/test_security.py:
test_what_no_session_uses_is_swept_after_an_hour, test_an_upload_goes_with_the_session_of_a_program,
test_no_address_is_ever_fetched.
"""

import base64
import binascii
import hashlib
import os
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vtw_demo.errors import UserError

MAXIMUM_UPLOAD_BYTES = 20_000_000
TOO_LARGE = f"This is too large: a picture's file may have up to {MAXIMUM_UPLOAD_BYTES // 1_000_000} MB."
WANTED = (
    "There is no picture: hand a data URI (data:image/png;base64,...), what gradio_client's handle_file makes, or "
    '{"path": ...} with the path that POST /gradio_api/upload gave. Other files and addresses are never read.'
)
# What no open session uses goes this long after it came: programs may send a picture once and ask about it again.
UNCLAIMED_SECONDS = 3600.0
SWEEP_SECONDS = 60.0
FOLDER_VARIABLE = "GRADIO_TEMP_DIR"


class Uploads:
    """A session is open while its page, or `gradio_client`, holds a connection that says so. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._kept: frozenset[Path] = frozenset()
        self._lock = threading.Lock()
        self._open: Counter[str] = Counter()
        # The sessions that have used a file.
        self._sessions: defaultdict[Path, set[str]] = defaultdict(set)

    def holds(self, path: str | Path) -> bool:
        """Whether a path, followed to its end, lies in the folder. What isn't there is the folder's by its name."""
        try:
            return Path(path).resolve().is_relative_to(self.folder)
        except (OSError, ValueError, RuntimeError):  # too long, with NUL, or a circle of links
            return False

    def keep_present(self) -> None:
        """What is in the folder now stays, whoever uses it: the page's own pictures, before any visitor comes."""
        self._kept = frozenset(path for path in self.folder.rglob("*") if path.is_file())

    def claim(self, session: str, path: str | Path) -> None:
        """`session` uses the file: it is there until the session ends, or, of one that never opened, an hour more."""
        file = Path(path).resolve()
        with self._lock:
            self._sessions[file].add(session)
            if file.exists():
                os.utime(file)

    @contextmanager
    def opened(self, session: str) -> Iterator[None]:
        """While the session is open; at its end go the files that no other session uses, or has asked about lately."""
        with self._lock:
            self._open[session] += 1
        try:
            yield
        finally:
            with self._lock:
                self._open[session] -= 1
                if not self._open[session]:
                    del self._open[session]
                    self._leave(session)

    def sweep(self) -> None:
        """Remove what no open session uses and nobody has asked for in an hour."""
        oldest = time.time() - UNCLAIMED_SECONDS
        with self._lock:
            for file in [path for path in self.folder.rglob("*") if path.is_file()]:
                is_used = any(session in self._open for session in self._sessions.get(file, ()))
                with suppress(FileNotFoundError):  # Gradio moves what has come in whole
                    if not is_used and file.stat().st_mtime < oldest:
                        self._remove(file)
            for file in [file for file in self._sessions if not file.exists()]:
                del self._sessions[file]

    def store_data_uris(self, arguments: dict[str, Any], positions: list[list[str | int]]) -> dict[str, Any]:
        """An MCP tool's arguments, `received` at each of the `positions` where Gradio wants a file."""
        names = {position[0] for position in positions}
        return {name: self.received(value) if name in names else value for name, value in arguments.items()}

    def received(self, given: Any) -> dict[str, str]:
        """A reference to a stored file, for one or for a data URI, bare or as a reference's `url`. Raises UserError."""
        path, uri = (given.get("path"), given.get("url")) if isinstance(given, dict) else (None, given)
        if path and isinstance(path, str) and self.holds(path):
            return {"path": path}
        head, _, encoded = uri.partition(",") if isinstance(uri, str) else ("", "", "")
        if not head.lower().startswith("data:") or not head.lower().endswith(";base64"):
            raise UserError(WANTED)
        try:
            content = base64.b64decode("".join(encoded.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise UserError("The picture's base64 is broken: send that of the whole file.") from error
        if len(content) > MAXIMUM_UPLOAD_BYTES:
            raise UserError(TOO_LARGE)
        file = self.folder / hashlib.sha256(content).hexdigest() / "picture"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return {"path": str(file)}

    def _leave(self, session: str) -> None:
        for file in [file for file, sessions in self._sessions.items() if session in sessions]:
            self._sessions[file].remove(session)
            if not self._sessions[file]:
                del self._sessions[file]
                self._remove(file)

    def _remove(self, file: Path) -> None:
        if file in self._kept:
            return
        file.unlink(missing_ok=True)
        if file.parent != self.folder and file.parent.exists() and not any(file.parent.iterdir()):
            file.parent.rmdir()


@contextmanager
def own_upload_folder() -> Iterator[None]:
    """A new folder that only this user can read, where Gradio keeps files of pages that are built within the block; it
    is removed at the end with all that is in it."""
    before = os.environ.get(FOLDER_VARIABLE)
    try:
        if before:
            Path(before).mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix="vtw-demo-", dir=before or None, ignore_cleanup_errors=True)
    except OSError as error:
        where = repr(before) if before else "the system's own folder for such"
        raise UserError(f"In {where} ({FOLDER_VARIABLE}) no uploads can be kept: {error.strerror}.") from error
    with made as folder:
        os.environ[FOLDER_VARIABLE] = str(Path(folder).resolve())
        try:
            yield
        finally:
            del os.environ[FOLDER_VARIABLE]
            if before is not None:
                os.environ[FOLDER_VARIABLE] = before
