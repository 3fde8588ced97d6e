"""Figures as people read them, and sentences with figures in them."""

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

MISSING = "–"


def milliseconds(value: float | None) -> str:
    if value is None:
        return MISSING
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} ms"


def amount(value: float, unit: str) -> str:
    """In the largest decimal multiple of `unit` that keeps the number at 1 or above: 1.24 MB."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            number = f"{value / factor:.3g}" if value < 999.5 * factor else f"{value / factor:,.0f}"
            return f"{number} {prefix}{unit}"
    return f"{value:.0f} {unit}"


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(line)} |" for line in (heads, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(heads)}", *lines[1:]])


def percent(share: float) -> str:
    """A share of 0 to 1; small ones with a digit more, so that little isn't shown as nothing."""
    value = 100 * share
    if 0 < value < 0.1:
        return "less than 0.1 %"
    return f"{value:.1f} %" if value < 10 and round(value, 1) != round(value) else f"{value:.0f} %"


def run_title(run: str, layer: int) -> str:
    return "Every layer sees the picture" if run == "full" else f"Visual tokens withdrawn at layer {layer}"


def count(number: int, noun: str) -> str:
    """With the noun's plural where it is asked for: "1 sample", "20 samples"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


TEXTS = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
TEXTS.filters |= {"percent": percent, "amount": amount, "milliseconds": milliseconds, "median": median}
TEXTS.globals |= {"run_title": run_title, "count": count}


def filled(file: Path, **values: Any) -> str:
    """What a template in a file says."""
    return _template(file).render(values).strip()


def sentences(file: Path, **values: Any) -> str:
    """The same, its lines as one."""
    return filled(file, **values).replace("\n", " ")


@cache
def _template(file: Path) -> Template:
    return TEXTS.from_string(file.read_text(encoding="utf-8"))
