"""The templates of this folder, filled in. All text in HTML is escaped, but for what a template calls safe."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from vtw_demo.formats import amount, count, milliseconds, percent, run_title

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=select_autoescape(),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {"percent": percent, "amount": amount, "milliseconds": milliseconds}
TEMPLATES.globals |= {"run_title": run_title, "count": count}


def reading(name: str, **values: Any) -> str:
    """The sentences of a template `name`_reading.txt, whose lines are one."""
    return TEMPLATES.get_template(f"{name}_reading.txt").render(values).strip().replace("\n", " ")
