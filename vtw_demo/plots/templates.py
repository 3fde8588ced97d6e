"""The HTML templates of this folder, filled in. All text in them is escaped, but for what a template calls safe."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from vtw_demo.formats import amount, count, milliseconds, percent, run_title

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {"percent": percent, "amount": amount, "milliseconds": milliseconds}
TEMPLATES.globals |= {"run_title": run_title, "count": count}
