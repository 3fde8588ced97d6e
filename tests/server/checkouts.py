"""Small checkouts that are in order, for tests to put something wrong into."""

from __future__ import annotations

import subprocess
from pathlib import Path

from vtw_demo.server.spacefile import read_spacefile, with_front_matter

SPACEFILE = """
title: A demo
emoji: 👁
colorFrom: blue
colorTo: yellow
short_description: One thing beside another
sdk: gradio
sdk_version: 6.31.0
python_version: 3.12.12
app_file: app.py
license: mit
models: [some/model]
variables: {VTW_LAYER: "9"}
"""


def make_checkout(folder: Path, has_history: bool = True) -> Path:
    """A checkout in `folder`, with a file that git ignores and one that nobody has added yet."""
    files = {
        "Spacefile": SPACEFILE,
        "app.py": "print('here')\n",
        "requirements.txt": "# What it needs.\ntorch==2.13.0\ngradio[mcp]==6.31.*  # the page\n",
        "pyproject.toml": '[project]\nname = "demo"\nrequires-python = ">=3.11"\n',
        ".gitignore": "*.log\n/runs/\n.env\n",
        "package/module.py": "x = 1\n",
        "runs/big.bin": "ignored",
        "a.log": "ignored",
        ".env": "HF_" + "TOKEN=hf_" + "a1" * 17 + "\n",
    }
    for path, content in files.items():
        write(folder, path, content)
    write(folder, "README.md", with_front_matter("# A demo\n", read_spacefile(folder)))
    if has_history:
        git(folder, "init", "--quiet")
        git(folder, "add", "--all")
    write(folder, "package/new.py", "y = 2\n")
    return folder


def write(folder: Path, path: str, content: str | bytes) -> None:
    place = folder / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content if isinstance(content, bytes) else content.encode())


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)
