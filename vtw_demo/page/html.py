"""What the page says, as HTML: its header, its single lines, its tables, its buttons. All text in it is escaped."""

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from html import escape
from pathlib import Path

from vtw_demo.comparison.analysis import Analysis
from vtw_demo.comparison.compare import LayerAnswer, first_stable_layer
from vtw_demo.comparison.timed_generate import Run
from vtw_demo.models.loading import EMBEDDED, EMBEDDED_PURPOSE
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.page.session import PastComparison
from vtw_demo.plots.style import shown_tokens
from vtw_demo.plots.tab import ANSWER_MEAN, LAST_PROMPT, AttentionQuery
from vtw_demo.plots.templates import TEMPLATES

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
    comparison = analysis.comparison
    answers = (map(analysis.vlm.token_text, run.tokens) for run in (comparison.full, comparison.withdrawn))
    buttons: dict[AttentionQuery, str] = {LAST_PROMPT: "last prompt token"}
    if has_mean:
        buttons[ANSWER_MEAN] = "mean over the answer"
    for index, pair in enumerate(zip(*answers, strict=False)):
        buttons[index] = " / ".join(shown_tokens(*pair).values())
    return TEMPLATES.get_template("token_strip.html").render(buttons=buttons, chosen=chosen)


def answers_table(full: Run, answers: Sequence[LayerAnswer], is_complete: bool) -> str:
    """A row for each K in ascending order, and the full answer below; words that differ from it are marked.

    Where `answers` are complete, the first K from which on all of them are the full answer is marked too.
    """
    stable = first_stable_layer(full, answers) if is_complete else None
    table = TEMPLATES.get_template("answers.html")
    return table.render(full=full, answers=answers, stable=stable, marked=_marked)


def history_table(history: Sequence[PastComparison]) -> str:
    """A row for each of the visitor's comparisons, the latest first."""
    return TEMPLATES.get_template("history.html").render(history=history[::-1], shortened=shortened)


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST_CELL else f"{text[: LONGEST_CELL - 1]}…"


def _marked(full: str, withdrawn: str) -> str:
    """`withdrawn`, its words that aren't in their place in `full` marked, and a sign where words are missing."""
    words, others = full.split(), withdrawn.split()
    parts = []
    for kind, _, _, first, last in SequenceMatcher(None, words, others, autojunk=False).get_opcodes():
        said = escape(" ".join(others[first:last]))
        parts.append(said if kind == "equal" else f"<mark>{said or '⌀'}</mark>")
    return " ".join(parts) or "<mark>⌀</mark>"
