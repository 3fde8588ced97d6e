"""Which files of a checkout a Space would get: those that git doesn't ignore."""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vtw_demo.errors import UserError


@dataclass(frozen=True)
class SpaceFile:
    """One file that would be sent: its path in the repository, with slashes, and its size in bytes.

    Raises ValueError for a negative size.
    """

    path: str
    size: int

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"A file has 0 bytes or more; {self.path} has {self.size}.")


@dataclass(frozen=True)
class Checkout:
    """What git says of a folder.

    - `files`: what it doesn't ignore, tracked or not, sorted by path; `untracked`: the paths of those that nobody has
      added yet.
    - `ignored`: paths that are tracked and ignored all the same; `links`: paths of symbolic links. `files` has neither.
    - `has_history`: whether git keeps the folder; without, all files count as untracked.
    """

    files: tuple[SpaceFile, ...]
    untracked: tuple[str, ...]
    ignored: tuple[str, ...]
    links: tuple[str, ...]
    has_history: bool


def read_checkout(folder: Path) -> Checkout:
    """Ask git which files of a folder it doesn't ignore; without a .git its .gitignore files say so.

    Raises ValueError, in a sentence for people, for no folder, and where git isn't installed or fails.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {str(folder)!r}.")
    has_history = (folder / ".git").exists()
    if has_history:
        tracked, untracked = _listed(folder, ["--cached"]), _listed(folder, ["--others", "--exclude-standard"])
        ignored = _listed(folder, ["--cached", "--ignored", "--exclude-standard"])
    else:
        with tempfile.TemporaryDirectory() as empty:
            _git(folder, ["init", "--quiet", "--bare", empty])
            at = [f"--git-dir={empty}", "--work-tree=."]
            tracked, untracked = set(), _listed(folder, ["--others", "--exclude-standard"], at)
            ignored = set()
    found = {path: folder / path for path in sorted((tracked | untracked) - ignored)}
    links = tuple(path for path, place in found.items() if place.is_symlink())
    files = tuple(
        SpaceFile(path, place.stat().st_size)
        for path, place in found.items()
        if place.is_file() and not place.is_symlink()
    )
    sent = {file.path for file in files}
    kept_out = tuple(path for path in sorted(ignored) if (folder / path).is_file())
    return Checkout(files, tuple(sorted(untracked & sent)), kept_out, links, has_history)


def _listed(folder: Path, what: list[str], at: list[str] | None = None) -> set[str]:
    return {path for path in _git(folder, [*(at or []), "ls-files", "-z", *what]).split("\0") if path}


def _git(folder: Path, arguments: list[str]) -> str:
    # Inside a hook, these would name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        asked = subprocess.run(["git", *arguments], cwd=folder, env=environment, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise UserError("git isn't installed, so what it ignores can't be known: install it.") from error
    if asked.returncode:
        said = " ".join(asked.stderr.decode(errors="replace").split())
        raise UserError(f"git can't say what it ignores in {folder}: {said}")
    return asked.stdout.decode(errors="surrogateescape")
