"""The two answers with what they cost, as HTML. All text in it is escaped."""

from dataclasses import dataclass
from html import escape

from vtw_demo.comparison.compare import RunName
from vtw_demo.comparison.timed_generate import Run
from vtw_demo.formats import amount, milliseconds, run_title
from vtw_demo.plots.glossary import term


@dataclass(frozen=True)
class AnswerCard:
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
            said = f"{self.new_tokens} tokens so far" if self.is_running else "&nbsp;"
            return f'<p class="progress">{said}</p>'
        run = self.result
        figures = [
            (term("image encoding"), milliseconds(run.encode_ms)),
            (term("prefill"), milliseconds(run.prefill_ms)),
            (term("decode", "decode, per token"), milliseconds(run.decode_ms_per_token)),
            (f"total, {len(run.tokens)} tokens", milliseconds(run.total_ms)),
            (term("FLOPs", "prefill FLOPs"), amount(run.prefill_flops, "FLOPs")),
            (term("KV cache"), amount(run.kv_cache_bytes, "B")),
        ]
        if run.peak_memory_bytes is not None:
            figures.append(("GPU memory, peak", amount(run.peak_memory_bytes, "B")))
        rows = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in figures)
        return f'<dl class="figures">{rows}</dl>'
