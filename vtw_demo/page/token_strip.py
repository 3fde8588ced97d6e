"""Whose attention is shown: the last prompt token, the answer's mean, or a token of the answer that one clicks."""

from __future__ import annotations

from html import escape
from itertools import zip_longest

import gradio as gr

from vtw_demo.comparison.analysis import Analysis
from vtw_demo.plots.tab import ANSWER_MEAN, LAST_PROMPT, AttentionQuery

# A click on one of the buttons says which.
_TELL = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) trigger("select", {query: button.dataset.query});
});
"""


def token_strip(elem_id: str) -> gr.HTML:
    """The component; its `select` event carries the `query` that `read_choice` reads."""
    return gr.HTML(js_on_load=_TELL, padding=False, elem_id=elem_id)


def strip_html(analysis: Analysis, chosen: AttentionQuery, has_mean: bool) -> str:
    """A button for each query; answer tokens that the two runs don't share are shown as "full / withdrawn".

    Tokens beyond the end of the shorter answer have no counterpart to be shown beside.
    """
    token_text = analysis.vlm.token_text
    runs = analysis.comparison.full.tokens, analysis.comparison.withdrawn.tokens
    buttons: list[tuple[AttentionQuery, str]] = [(LAST_PROMPT, "last prompt token")]
    if has_mean:
        buttons.append((ANSWER_MEAN, "mean over the answer"))
    for index, (full, withdrawn) in enumerate(zip_longest(*runs)):
        if full is None or withdrawn is None:
            break
        said = [token_text(token).strip() or "␣" for token in dict.fromkeys((full, withdrawn))]
        buttons.append((index, " / ".join(said)))
    shown = "".join(
        f'<button type="button" data-query="{escape(str(query))}" aria-pressed="{str(query == chosen).lower()}">'
        f"{escape(text)}</button>"
        for query, text in buttons
    )
    return f'<div class="token-strip" role="group" aria-label="Attention of the"><span>Attention of</span>{shown}</div>'


def read_choice(query: str) -> AttentionQuery:
    """What a button stands for. Raises ValueError for what is none."""
    if query == LAST_PROMPT:
        return LAST_PROMPT
    if query == ANSWER_MEAN:
        return ANSWER_MEAN
    return int(query)
