"""What the page says, as HTML: its header, its single lines, its tables, its buttons. All text in it is escaped."""

from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import partial
from html import escape
from pathlib import Path

from vtw_demo.comparison.analysis import Analysis
from vtw_demo.comparison.compare import LayerAnswer, first_stable_layer
from vtw_demo.comparison.timed_generate import Run
from vtw_demo.formats import shortened
from vtw_demo.models.loading import EMBEDDED, EMBEDDED_PURPOSE
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.page.session import PastComparison
from vtw_demo.plots.style import shown_tokens
from vtw_demo.plots.tab import ANSWER_MEAN, LAST_PROMPT, AttentionQuery
from vtw_demo.plots.templates import TEMPLATES

in_a_cell = partial(shortened, longest=60)


def asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def header(vlm: VisionLanguageModel, visual_tokens: int | None = None) -> str:
    purpose = EMBEDDED_PURPOSE if vlm.name == EMBEDDED else ""
    return TEMPLATES.get_template("header.html").render(vlm=vlm, visual_tokens=visual_tokens, purpose=purpose)


def progress_line(sentence: str) -> str:
    return f'<p class="verdict progress" role="status">{escape(sentence)}</p>'


def problem_line(sentence: str) -> str:
    return f'<p class="verdict problem" role="alert">{escape(sentence)}</p>'


def upgrade_line(sentence: str, is_running: bool) -> str:
    """While it changes every second, nobody wants it read out each time."""
    return f'<p class="upgrade" role="{"none" if is_running else "status"}">{escape(sentence)}</p>'


def reading_line(sentence: str, of: str = "") -> str:
    """`of`, here and elsewhere: what was asked, for `older.js`."""
    return f'<p class="reading" data-of="{escape(of)}">{escape(sentence)}</p>'


def waiting_line(sentence: str, of: str = "") -> str:
    return f'<p class="reading waiting" role="status" data-of="{escape(of)}">{escape(sentence)}</p>'


def note_line(sentence: str) -> str:
    return f'<p class="note">{escape(sentence)}</p>'


def token_strip(analysis: Analysis, chosen: AttentionQuery, has_mean: bool) -> str:
    """Whose attention is shown: a button for each query, answer tokens that the runs don't share as "full / withdrawn";
    those beyond the end of the shortest answer have no counterpart to be shown beside."""
    comparison = analysis.comparison
    answers = [map(analysis.vlm.token_text, run.tokens) for run in (comparison.full, comparison.withdrawn)]
    shortest = min(len(getattr(comparison, run).tokens) for run in comparison.runs())
    buttons: dict[AttentionQuery, str] = {LAST_PROMPT: "last prompt token"}
    if has_mean:
        buttons[ANSWER_MEAN] = "mean over the answer"
    for index, pair in zip(range(shortest), zip(*answers, strict=False), strict=False):
        buttons[index] = " / ".join(shown_tokens(*pair).values())
    return TEMPLATES.get_template("token_strip.html").render(buttons=buttons, chosen=chosen)


def answers_table(full: Run, answers: Sequence[LayerAnswer], is_complete: bool) -> str:
    """A row for each K in ascending order, and the full answer below; words that differ from it are marked, and where
    all answers are there, the first K from which on they are the full one."""
    stable = first_stable_layer(full, answers) if is_complete else None
    table = TEMPLATES.get_template("answers.html")
    return table.render(full=full, answers=answers, stable=stable, marked=_marked)


def history_table(history: Sequence[PastComparison]) -> str:
    return TEMPLATES.get_template("history.html").render(history=history[::-1], shortened=in_a_cell)


def _marked(full: str, withdrawn: str) -> str:
    """`withdrawn`, its words that aren't in their place in `full` marked, and a sign where words are missing."""
    words, others = full.split(), withdrawn.split()
    parts = []
    for kind, _, _, first, last in SequenceMatcher(None, words, others, autojunk=False).get_opcodes():
        said = escape(" ".join(others[first:last]))
        parts.append(said if kind == "equal" else f"<mark>{said or '⌀'}</mark>")
    return " ".join(parts) or "<mark>⌀</mark>"
