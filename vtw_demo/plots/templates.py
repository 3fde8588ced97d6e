"""The templates of this folder, filled in. All text in HTML is escaped, but for what a template calls safe."""

from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader

from vtw_demo.formats import TEXTS, sentences

FOLDER = Path(__file__).parent
TEMPLATES = TEXTS.overlay(loader=FileSystemLoader(FOLDER), autoescape=True)


def reading(name: str, **values: Any) -> str:
    return sentences(FOLDER / f"{name}_reading.txt", **values)
