"""What nobody may read, found in files by its look: tokens, keys, passwords.

The package detect-secrets (1.5) is no substitute: it has no look of a Hugging Face, Google or Anthropic key, leaves out
all files that aren't text, and takes seventeen times as long.
"""

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
_SNIFFED_BYTES = 8192


def find_secrets(folder: Path, paths: Iterable[str], token: str | None = None) -> list[str]:
    """Where files of a folder hold what looks like a secret, in a sentence each that doesn't repeat it.

    `token` is looked for as it is: the user's own.
    """
    looks = [("the token in use here", re.escape(token.encode()))] if token else []
    found = []
    for path in paths:
        name = PurePosixPath(path).name.lower()
        if any(fnmatch(name, look) for look in _NAMES) and not any(fnmatch(name, look) for look in _EXAMPLES):
            found.append(f"{path} is a file for secrets.")
        lines = _looked_at(folder / path, [*looks, *_LOOKS])
        found += [f"{path}, line {line}, holds what looks like {what}." for line, what in lines]
    return found


def _looked_at(path: Path, looks: list[tuple[str, bytes]]) -> list[tuple[int, str]]:
    if not path.stat().st_size:
        return []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        is_text = b"\0" not in content[:_SNIFFED_BYTES]
        lines: dict[int, str] = {}
        for what, look in [*looks, _ASSIGNED] if is_text else looks:
            for match in re.finditer(look, content, re.MULTILINE):
                # The first look that fits a line says most of it.
                lines.setdefault(content[: match.start()].count(b"\n") + 1, what)
        return sorted(lines.items())
