"""What the page says, as HTML: its header, its single lines, its tables, its buttons. All text in it is escaped."""

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from html import escape
from itertools import zip_longest
from pathlib import Path

from vtw_demo.comparison.analysis import Analysis
from vtw_demo.comparison.compare import LayerAnswer, first_stable_layer
from vtw_demo.comparison.timed_generate import Run
from vtw_demo.formats import count, milliseconds
from vtw_demo.models.loading import EMBEDDED, EMBEDDED_PURPOSE
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.page.session import PastComparison
from vtw_demo.plots.style import shown_tokens
from vtw_demo.plots.tab import ANSWER_MEAN, LAST_PROMPT, AttentionQuery

LONGEST_CELL = 60


def asset(name: str) -> str:
    """A script, style sheet or text of the page, which the browser reads."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def header(vlm: VisionLanguageModel, visual_tokens: int | None = None) -> str:
    listed = [f"model {vlm.name}", vlm.precision, str(vlm.device), f"{vlm.layers} decoder layers"]
    if visual_tokens is not None:
        listed.append(f"{visual_tokens} visual tokens")
    listed += [vlm.note] if vlm.note else []
    said = "<p>Visual Tokens Withdrawal, seen on your own picture</p>"
    if vlm.name == EMBEDDED:
        said = f'<p class="purpose">{EMBEDDED_PURPOSE}</p>'
    return f'<div class="header"><h1>VTW Demo</h1>{said}{facts(listed)}</div>'


def facts(listed: Iterable[str]) -> str:
    return f'<div class="facts">{"".join(f"<span>{escape(fact)}</span>" for fact in listed)}</div>'


def progress_line(sentence: str) -> str:
    return f'<p class="verdict progress" role="status">{escape(sentence)}</p>'


def problem_line(sentence: str) -> str:
    return f'<p class="verdict problem" role="alert">{escape(sentence)}</p>'


def reading_line(sentence: str, of: str = "") -> str:
    """`of`, here and elsewhere: what was asked, for `older.js`."""
    return f'<p class="reading" data-of="{escape(of)}">{escape(sentence)}</p>'


def waiting_line(sentence: str, of: str = "") -> str:
    return f'<p class="reading waiting" role="status" data-of="{escape(of)}">{escape(sentence)}</p>'


def note_line(sentence: str) -> str:
    return f'<p class="note">{escape(sentence)}</p>'


def token_strip(analysis: Analysis, chosen: AttentionQuery, has_mean: bool) -> str:
    """Whose attention is shown: a button for each query. Answer tokens that the two runs don't share are shown as
    "full / withdrawn"; those beyond the end of the shorter answer have no counterpart to be shown beside."""
    token_text = analysis.vlm.token_text
    runs = analysis.comparison.full.tokens, analysis.comparison.withdrawn.tokens
    buttons: list[tuple[AttentionQuery, str]] = [(LAST_PROMPT, "last prompt token")]
    if has_mean:
        buttons.append((ANSWER_MEAN, "mean over the answer"))
    for index, (full, withdrawn) in enumerate(zip_longest(*runs)):
        if full is None or withdrawn is None:
            break
        said = shown_tokens(token_text(full), token_text(withdrawn))
        buttons.append((index, " / ".join(said.values())))
    shown = "".join(
        f'<button type="button" data-query="{escape(str(query))}" aria-pressed="{str(query == chosen).lower()}">'
        f"{escape(text)}</button>"
        for query, text in buttons
    )
    return f'<div class="token-strip" role="group" aria-label="Attention of the"><span>Attention of</span>{shown}</div>'


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
        rows.append(_answer_row(kind, f"K = {answer.layer}", text, note, answer.run))
    rows.append(_answer_row("full", "full", escape(full.answer), "no withdrawal", full))
    return _table(("layer", "answer", "prefill, one run", "total"), rows)


def history_table(history: Sequence[PastComparison]) -> str:
    """A row for each of the visitor's comparisons, the latest first."""
    names = ("", "question", "K", "full", "withdrawn", "same", "prefill in one run, full", "withdrawn")
    return _table(names, [_history_row(past) for past in reversed(history)])


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST_CELL else f"{text[: LONGEST_CELL - 1]}…"


def _table(names: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return f'<table class="answers-table"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _answer_row(kind: str, layer: str, text: str, note: str, run: Run) -> str:
    total = f"{milliseconds(run.total_ms)}, {count(len(run.tokens), 'token')}"
    times = f"<td>{milliseconds(run.prefill_ms)}</td><td>{total}</td>"
    return f'<tr class="{kind}"><th scope="row">{layer}<small>{note}</small></th><td>{text}</td>{times}</tr>'


def _history_row(past: PastComparison) -> str:
    comparison = past.comparison
    full, withdrawn = comparison.full, comparison.withdrawn
    texts = (comparison.question, str(comparison.layer), full.answer, withdrawn.answer)
    cells = [shortened(text) for text in texts]
    cells.append("yes" if comparison.same_answer else "no")
    cells += [milliseconds(run.prefill_ms) for run in (full, withdrawn)]
    return f'<tr><th scope="row">{past.number}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'


def _marked(full: str, withdrawn: str) -> str:
    """`withdrawn`, its words that aren't in their place in `full` marked, and a sign where words are missing."""
    words, others = full.split(), withdrawn.split()
    parts = []
    for kind, _, _, first, last in SequenceMatcher(None, words, others, autojunk=False).get_opcodes():
        said = escape(" ".join(others[first:last]))
        parts.append(said if kind == "equal" else f"<mark>{said or '⌀'}</mark>")
    return " ".join(parts) or "<mark>⌀</mark>"
