"""The field's terms, each explained in one sentence, and what the page shows, in a minute's reading."""

from html import escape

from vtw_demo.files import data_beside
from vtw_demo.plots.templates import TEMPLATES

TERMS: dict[str, str] = data_beside(__file__, "glossary.json")


def term(name: str, shown: str | None = None) -> str:
    """One of `TERMS`, as `shown` or by its name, with its sentence on hover, focus and tap: escaped HTML."""
    said = escape(f"{name}: {TERMS[name]}")
    # A description, not a label: a label would name the span as the page's own fields are named.
    return (
        f'<span class="term explained" tabindex="0" role="term" aria-description="{said}" data-explained="{said}">'
        f"{escape(name if shown is None else shown)}</span>"
    )


WHAT_AM_I_LOOKING_AT = TEMPLATES.get_template("glossary.html").render(term=term)
