"""The visitor's comparisons, as a table and as choices. All text in it is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from vtw_demo.formats import milliseconds
from vtw_demo.page.session import PastComparison

SHOWN_CHARACTERS = 60


def history_table(history: Sequence[PastComparison]) -> str:
    """A row for each comparison, the latest first."""
    names = ("", "question", "K", "full", "withdrawn", "same", "prefill, full", "prefill, withdrawn")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = "".join(_row(past) for past in reversed(history))
    return f'<table class="answers-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def history_choices(history: Sequence[PastComparison]) -> list[tuple[str, int]]:
    """What a list of them says, and each one's number."""
    return [
        (f"{past.number}: K = {past.comparison.layer}, {_short(past.comparison.question)}", past.number)
        for past in history
    ]


def past_comparison(history: Sequence[PastComparison], number: int | None) -> PastComparison | None:
    """The one of that number, if it is still there."""
    return next((past for past in history if past.number == number), None)


def _row(past: PastComparison) -> str:
    comparison = past.comparison
    full, withdrawn = comparison.full, comparison.withdrawn
    texts = (comparison.question, str(comparison.layer), full.answer, withdrawn.answer)
    cells = [_short(text) for text in texts]
    cells += ["yes" if comparison.same_answer else "no", milliseconds(full.prefill_ms)]
    cells.append(milliseconds(withdrawn.prefill_ms))
    return f'<tr><th scope="row">{past.number}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"
