"""The field's terms, each explained in one sentence, and what the page shows, in a minute's reading."""

import json
from html import escape
from pathlib import Path

TERMS: dict[str, str] = json.loads(Path(__file__).with_name("glossary.json").read_text(encoding="utf-8"))


def term(name: str, shown: str | None = None) -> str:
    """One of `TERMS`, as `shown` or by its name, with its sentence on hover, focus and tap: escaped HTML."""
    said = escape(f"{name}: {TERMS[name]}")
    # A description, not a label: a label would name the span as the page's own fields are named.
    return (
        f'<span class="term explained" tabindex="0" role="term" aria-description="{said}" data-explained="{said}">'
        f"{escape(name if shown is None else shown)}</span>"
    )


WHAT_AM_I_LOOKING_AT = (
    f"<p>A vision-language model makes {term('visual tokens')} of a picture and reads them with your question. Its "
    "decoder takes all of them through every layer. Visual Tokens Withdrawal takes them out before the "
    f"{term('withdrawal layer K')}: from there on layers see text only, which is less work.</p>"
    "<p>Your question is answered twice, first with every layer seeing the picture, then with the tokens withdrawn. "
    "The same answer means that this question didn't need them from K on. Where K is too early, the answer may change. "
    f"The slider sets K; the line beside it shows how far the next token moves, its {term('KL divergence')}.</p>"
    f"<ul><li>Attention: what {term('share of attention', 'share')} the picture gets in each layer.</li>"
    "<li>Where it looks: which parts of the picture get it.</li>"
    "<li>Migration: in which layers the text takes up what the picture holds.</li>"
    "<li>Staircase: what is left in each layer of tokens, computing and memory; the step is at K.</li>"
    f"<li>Timing: {term('image encoding')} is the same work in both runs, {term('prefill')} is less when withdrawn. "
    "With a small model or a short prompt the clock may not show it.</li></ul>"
)
