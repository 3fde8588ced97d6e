"""The answers at every withdrawal layer, as an HTML table. All text in it is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from html import escape

from vtw_demo.comparison.every_layer import LayerAnswer, first_stable_layer
from vtw_demo.comparison.timed_generate import Run
from vtw_demo.formats import milliseconds


def answers_table(full: Run, answers: Sequence[LayerAnswer], is_complete: bool) -> str:
    """A row for each K in ascending order, and the full answer below; words that differ from it are marked.

    Where `answers` are complete, the first K from which on all of them are the full answer is marked too.
    """
    stable = first_stable_layer(full, answers) if is_complete else None
    rows = []
    for answer in answers:
        same = answer.run.tokens == full.tokens
        text = escape(full.answer) if same else _marked(full.answer, answer.run.answer)
        note = "same from here on" if answer.layer == stable else "same" if same else "differs"
        kind = f"{'same' if same else 'differs'}{' stable' if answer.layer == stable else ''}"
        rows.append(_row(kind, f"K = {answer.layer}", text, note, answer.run))
    rows.append(_row("full", "full", escape(full.answer), "no withdrawal", full))
    head = "".join(f'<th scope="col">{name}</th>' for name in ("layer", "answer", "prefill", "total"))
    return f'<table class="answers-table"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _row(kind: str, layer: str, text: str, note: str, run: Run) -> str:
    times = "".join(f"<td>{milliseconds(time)}</td>" for time in (run.prefill_ms, run.total_ms))
    return f'<tr class="{kind}"><th scope="row">{layer}<small>{note}</small></th><td>{text}</td>{times}</tr>'


def _marked(full: str, withdrawn: str) -> str:
    """`withdrawn`, its words that aren't in their place in `full` marked, and a sign where words are missing."""
    words, others = full.split(), withdrawn.split()
    parts = []
    for kind, _, _, first, last in SequenceMatcher(None, words, others, autojunk=False).get_opcodes():
        said = escape(" ".join(others[first:last]))
        if kind == "equal":
            parts.append(said)
        else:
            parts.append(f"<mark>{said or '⌀'}</mark>")
    return " ".join(parts) or "<mark>⌀</mark>"
