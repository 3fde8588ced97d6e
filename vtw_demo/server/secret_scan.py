"""What nobody may read, found in files by its look: tokens, keys, passwords.

The package detect-secrets (1.5) is no substitute: it has no look of a Hugging Face, Google or Anthropic key, leaves out
all files that aren't text, and takes seventeen times as long.
"""

import mmap
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from vtw_demo.files import data_beside

_LOOKS = data_beside(__file__, "secret_looks.toml")
_SNIFFED_BYTES = 8192


def find_secrets(folder: Path, paths: Iterable[str], token: str | None = None) -> list[str]:
    """Where files of a folder hold what looks like a secret, in a sentence each that doesn't repeat it.

    `token` is looked for as it is: the user's own.
    """
    own = {"the token in use here": re.escape(token)} if token else {}
    found = []
    for path in paths:
        name = PurePosixPath(path).name.lower()
        is_example = any(fnmatch(name, look) for look in _LOOKS["examples"])
        if not is_example and any(fnmatch(name, look) for look in _LOOKS["names"]):
            found.append(f"{path} is a file for secrets.")
        lines = _looked_at(folder / path, own | _LOOKS["anywhere"])
        found += [f"{path}, line {line}, holds what looks like {what}." for line, what in lines]
    return found


def _looked_at(path: Path, looks: dict[str, str]) -> list[tuple[int, str]]:
    if not path.stat().st_size:
        return []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        is_text = b"\0" not in content[:_SNIFFED_BYTES]
        lines: dict[int, str] = {}
        for what, look in (looks | _LOOKS["in_text"] if is_text else looks).items():
            for match in re.finditer(look.encode(), content, re.MULTILINE):
                # The first look that fits a line says most of it.
                lines.setdefault(content[: match.start()].count(b"\n") + 1, what)
        return sorted(lines.items())
