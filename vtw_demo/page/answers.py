"""The two answers with their figures, the line above them and the header, as HTML. All text in it is escaped."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from vtw_demo.compare import RunName
from vtw_demo.figures.formats import amount, milliseconds, run_title
from vtw_demo.timed_run import Run


@dataclass(frozen=True)
class Answer:
    """What is known of one run so far; `result` once it is complete."""

    run: RunName
    layer: int
    text: str = ""
    new_tokens: int = 0
    is_running: bool = False
    result: Run | None = None

    def to_html(self) -> str:
        text = self.result.answer if self.result else self.text
        state = " running" if self.is_running else ""
        return (
            f'<section class="answer-card {self.run}{state}"><h3>{escape(run_title(self.run, self.layer))}</h3>'
            f'<p class="answer" aria-live="polite">{escape(text) or "&nbsp;"}</p>{self._figures()}</section>'
        )

    def _figures(self) -> str:
        if self.result is None:
            return f'<p class="progress">{self.new_tokens} tokens so far</p>' if self.is_running else ""
        run = self.result
        figures = [
            ("image encoding", milliseconds(run.encode_ms)),
            ("prefill", milliseconds(run.prefill_ms)),
            ("decode, per token", milliseconds(run.decode_ms_per_token)),
            (f"total, {len(run.tokens)} tokens", milliseconds(run.total_ms)),
            ("prefill FLOPs", amount(run.prefill_flops, "FLOPs")),
            ("KV cache", amount(run.kv_cache_bytes, "B")),
        ]
        if run.peak_memory_bytes is not None:
            figures.append(("GPU memory, peak", amount(run.peak_memory_bytes, "B")))
        rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in figures)
        return f'<dl class="figures">{rows}</dl>'


def header(model: str, precision: str, device: str, layers: int, visual_tokens: int | None) -> str:
    facts = [f"model {model}", precision, device, f"{layers} decoder layers"]
    if visual_tokens is not None:
        facts.append(f"{visual_tokens} visual tokens")
    listed = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    title = "<h1>VTW Demo</h1><p>Visual Tokens Withdrawal, seen on your own picture</p>"
    return f'<div class="header">{title}<div class="facts">{listed}</div></div>'


def verdict_line(sentence: str) -> str:
    return f'<p class="verdict" role="status">{escape(sentence)}</p>'


def progress_line(sentence: str) -> str:
    return f'<p class="verdict progress" role="status">{escape(sentence)}</p>'


def problem_line(sentence: str) -> str:
    return f'<p class="verdict problem" role="alert">{escape(sentence)}</p>'


def reading_line(sentence: str) -> str:
    return f'<p class="reading">{escape(sentence)}</p>'
