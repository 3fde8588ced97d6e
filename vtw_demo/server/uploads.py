"""Files that visitors send, in a folder of this server's own: each is kept as long as a session uses it."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
        self._claims: dict[str, set[Path]] = {}

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
            self._claims.setdefault(session, set()).add(file)
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
                    left = self._claims.pop(session, set())
                    for file in left.difference(self._kept, *self._claims.values()):
                        self._remove(file)

    def sweep(self) -> None:
        """Remove what no open session uses and nobody has asked for in an hour."""
        oldest = time.time() - UNCLAIMED_SECONDS
        with self._lock:
            in_use = self._in_use() | self._kept
            for file in [path for path in self.folder.rglob("*") if path.is_file()]:
                with suppress(FileNotFoundError):  # Gradio moves what has come in whole
                    if file not in in_use and file.stat().st_mtime < oldest:
                        self._remove(file)
            there = {session: {file for file in files if file.exists()} for session, files in self._claims.items()}
            self._claims = {session: files for session, files in there.items() if files or session in self._open}

    def _in_use(self) -> set[Path]:
        return {file for session in self._open for file in self._claims.get(session, set())}

    def _remove(self, file: Path) -> None:
        file.unlink(missing_ok=True)
        if file.parent != self.folder and file.parent.exists() and not any(file.parent.iterdir()):
            file.parent.rmdir()


@contextmanager
def own_upload_folder() -> Iterator[Path]:
    """A new folder that only this user can read, where Gradio keeps files of pages that are built within the block.

    It is made in Gradio's own temporary folder, and removed at the end with all that is in it.
    """
    before = os.environ.get(FOLDER_VARIABLE)
    if before:
        Path(before).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="vtw-demo-", dir=before)).resolve()
    os.environ[FOLDER_VARIABLE] = str(folder)
    try:
        yield folder
    finally:
        if before is None:
            del os.environ[FOLDER_VARIABLE]
        else:
            os.environ[FOLDER_VARIABLE] = before
        shutil.rmtree(folder, ignore_errors=True)
