"""What nobody may read, found in files by its look: tokens, keys, passwords."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

# Files that are there to hold secrets.
_NAMES = (
    *(".env", ".env.*", "*.env", ".envrc", ".netrc", "_netrc", ".pypirc", ".git-credentials", ".htpasswd"),
    *("*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk"),
    *("id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", "credentials.json", "service-account*.json", "client_secret*.json"),
    *("secrets.toml", "secrets.yaml", "secrets.yml", "secrets.json", "stored_tokens"),
)
# Examples of such files, which hold none; what is in them is looked at all the same.
_EXAMPLES = ("*.example", "*.sample", "*.template")

# Each begins with plain text, which is found fast in files of many megabytes.
_LOOKS = (
    ("a Hugging Face token", rb"hf_[A-Za-z0-9]{30,}"),
    ("a Hugging Face token", rb"api_org_[A-Za-z0-9]{30,}"),
    ("an OpenAI or Anthropic key", rb"sk-(?<![A-Za-z0-9]sk-)(?:proj-|ant-|svcacct-)?[A-Za-z0-9_-]{20,}"),
    ("a GitHub token", rb"gh[pousr]_[A-Za-z0-9]{36,}"),
    ("a GitHub token", rb"github_pat_[A-Za-z0-9_]{22,}"),
    ("a GitLab token", rb"glpat-[A-Za-z0-9_-]{20,}"),
    ("an AWS key", rb"AKIA[A-Z0-9]{16}\b"),
    ("a Google key", rb"AIza[A-Za-z0-9_-]{35}"),
    ("a Slack token", rb"xox[abeoprs]-[A-Za-z0-9-]{10,}"),
    ("a Stripe key", rb"k_live_[A-Za-z0-9]{20,}"),
    ("an npm token", rb"npm_[A-Za-z0-9]{36,}"),
    ("a PyPI token", rb"pypi-AgE[A-Za-z0-9_-]{50,}"),
    ("a signed token (JWT)", rb"eyJ[A-Za-z0-9_-]{15,}\.eyJ[A-Za-z0-9_-]{15,}\.[A-Za-z0-9_-]{20,}"),
    ("a private key", rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"),
    ("a password in an address", rb"://[^/\s:@'\"<>{}$]+:[^/\s:@'\"<>{}$]+@[\w.-]+"),
)
# A value of letters and digits mixed, in quotes or up to the end of a line: no word, no name, no call. In text only.
_ASSIGNED = (
    "a password, key or token",
    rb"(?i)(?:password|passwd|secret|token|api_?key|access_?key|private_?key)['\"]?[ \t]*[:=][ \t]*"
    rb"(?:(['\"])(?=[^'\"\n]*[0-9])(?=[^'\"\n]*[a-z])[A-Za-z0-9_+/=.~-]{16,}\1"
    rb"|(?=[^\s]*[0-9])(?=[^\s]*[a-z])[A-Za-z0-9_+/=~-]{16,}(?=[ \t]*\r?$))",
)
_IN_TEXT = tuple((what, re.compile(look, re.MULTILINE)) for what, look in (*_LOOKS, _ASSIGNED))
_IN_BINARIES = _IN_TEXT[:-1]
_SNIFFED_BYTES = 8192


def find_secrets(folder: Path, paths: Iterable[str], known: Iterable[str] = ()) -> tuple[str, ...]:
    """Where files of a folder hold what looks like a secret, in a sentence each that doesn't repeat it.

    `known`: secrets that are looked for as they are, such as the user's own token.
    """
    values = [value.encode() for value in known if value]
    found = []
    for path in paths:
        if _is_named_like_secrets(path):
            found.append(f"{path} is a file for secrets.")
        found += [
            f"{path}, line {line}, holds what looks like {what}." for line, what in _looked_at(folder / path, values)
        ]
    return tuple(found)


def _is_named_like_secrets(path: str) -> bool:
    name = PurePosixPath(path).name.lower()
    return any(fnmatch(name, look) for look in _NAMES) and not any(fnmatch(name, look) for look in _EXAMPLES)


def _looked_at(path: Path, known: list[bytes]) -> list[tuple[int, str]]:
    if not path.stat().st_size:
        return []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        looks = [("the token in use here", re.compile(re.escape(value))) for value in known]
        looks += _IN_BINARIES if b"\0" in content[:_SNIFFED_BYTES] else _IN_TEXT
        lines: dict[int, str] = {}
        for what, pattern in looks:
            for place in [match.start() for match in pattern.finditer(content)]:
                # The first look that fits a line says most of it.
                lines.setdefault(content[:place].count(b"\n") + 1, what)
        return sorted(lines.items())
