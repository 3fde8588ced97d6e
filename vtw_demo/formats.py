"""Figures as people read them, and sentences with figures in them; results as plain data."""

from dataclasses import asdict, is_dataclass
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
    factor, prefix = decimal_multiple(value)
    digits = ".0f" if factor == 1 else ".3g" if value < 999.5 * factor else ",.0f"
    return f"{value / factor:{digits}} {prefix}{unit}"


def decimal_multiple(value: float) -> tuple[float, str]:
    """The largest that keeps a number at 1 or above, and its prefix."""
    multiples = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    return next((multiple for multiple in multiples if value >= multiple[0]), (1, ""))


def percent(share: float) -> str:
    """A share of 0 to 1; small ones with a digit more, so that little isn't shown as nothing."""
    value = 100 * share
    if 0 < value < 0.1:
        return "less than 0.1 %"
    return f"{value:.1f} %" if value < 10 and round(value, 1) != round(value) else f"{value:.0f} %"


def run_title(run: str, layer: int, recipe: str | None = None, is_automatic: bool = False) -> str:
    if run == "beside":
        return f"Beside it: {recipe}"
    if run == "full":
        return "Every layer sees the picture"
    return f"Visual tokens withdrawn at layer {layer}" + (", chosen by the prefill" if is_automatic else "")


def layer_span(first: int, last: int) -> str:
    return f"layer {first}" if first == last else f"layers {first} to {last}"


def shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def count(number: int, noun: str) -> str:
    """With the noun's plural where it is asked for: "1 sample", "20 samples"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


class PlainData:
    """A dataclass that can be written as JSON."""

    def to_json(self) -> dict[str, Any]:
        """Its fields and its properties by name, as plain data for `json.dumps`."""
        result: Any = self
        written = asdict(result)
        for name in (name for name, of in vars(type(self)).items() if isinstance(of, property)):
            value: Any = getattr(self, name)
            written[name] = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        return written


TEXTS = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
TEXTS.filters |= {"percent": percent, "amount": amount, "milliseconds": milliseconds, "median": median}
TEXTS.globals |= {"run_title": run_title, "layer_span": layer_span, "count": count}


def filled(file: Path, **values: Any) -> str:
    """What a template in a file says."""
    return _template(file).render(values).strip()


def sentences(file: Path, **values: Any) -> str:
    """The same, its lines as one."""
    return filled(file, **values).replace("\n", " ")


@cache
def _template(file: Path) -> Template:
    return TEXTS.from_string(file.read_text(encoding="utf-8"))
