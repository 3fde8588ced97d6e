"""The page's header and its single lines, as HTML. All text in it is escaped."""

from __future__ import annotations

from html import escape

from vtw_demo.models.loading import EMBEDDED, EMBEDDED_PURPOSE


def header(model: str, precision: str, device: str, layers: int, visual_tokens: int | None) -> str:
    facts = [f"model {model}", precision, device, f"{layers} decoder layers"]
    if visual_tokens is not None:
        facts.append(f"{visual_tokens} visual tokens")
    listed = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    said = "<p>Visual Tokens Withdrawal, seen on your own picture</p>"
    if model == EMBEDDED:
        said = f'<p class="purpose">{EMBEDDED_PURPOSE}</p>'
    title = f"<h1>VTW Demo</h1>{said}"
    return f'<div class="header">{title}<div class="facts">{listed}</div></div>'


def verdict_line(sentence: str) -> str:
    return f'<p class="verdict" role="status">{escape(sentence)}</p>'


def progress_line(sentence: str) -> str:
    return f'<p class="verdict progress" role="status">{escape(sentence)}</p>'


def problem_line(sentence: str) -> str:
    return f'<p class="verdict problem" role="alert">{escape(sentence)}</p>'


def reading_line(sentence: str) -> str:
    return f'<p class="reading">{escape(sentence)}</p>'


def waiting_line(sentence: str) -> str:
    return f'<p class="reading waiting" role="status">{escape(sentence)}</p>'
