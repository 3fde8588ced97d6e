"""Where the answers part: both, token by token, with each token's probability in both runs. All text is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import partial
from html import escape

from vtw_demo.comparison.analysis import Analysis, Part
from vtw_demo.comparison.compare import RunName
from vtw_demo.formats import percent, run_title
from vtw_demo.measurements.token_probabilities import AnswerProbabilities, AnswerToken
from vtw_demo.plots.style import RUN_COLOURS
from vtw_demo.plots.tab import Plot, Tab, View
from vtw_demo.plots.table import Table

# An element's label, shown beside it while it has the pointer or the focus. Placed by the window, so that it isn't cut
# by what is around it; a browser that can't place it beside the element shows it at the foot of the window.
TOOLTIP_CSS = """
.explained {anchor-name: --explained; anchor-scope: --explained; cursor: help; border-radius: 3px;}
.explained:focus-visible {outline: 2px solid currentColor; outline-offset: 1px;}
.explained:hover::after, .explained:focus::after {content: attr(data-explained); position: fixed; z-index: 1000;
  position-anchor: --explained; inset: auto 8px 12px 8px; inset: anchor(bottom) 8px auto 8px; margin: 4px auto;
  justify-self: anchor-center; position-try-fallbacks: flip-block; box-sizing: border-box; width: max-content;
  max-width: min(280px, 80vw); padding: 5px 9px; border-radius: 6px; pointer-events: none; white-space: normal;
  overflow-wrap: anywhere; text-wrap: pretty; font: 400 12px/1.4 system-ui, sans-serif; text-align: left;
  color: var(--background-fill-primary, Canvas); background: var(--body-text-color, CanvasText);}
"""

DIFFERENCES_CSS = f"""{TOOLTIP_CSS}
.differences h3 {{margin: 8px 0 2px; font-size: 13px; font-weight: 600;}}
.differences p {{margin: 0;}}
.differences .tokens {{font-size: 17px; line-height: 1.5;}}
.differences .word {{display: inline-flex; flex-wrap: wrap; align-items: flex-end; gap: 0 1px; vertical-align: bottom;
  margin: 2px 7px 2px 0; max-width: 100%;}}
.differences .token {{display: inline-block; min-width: 16px; max-width: 100%; box-sizing: border-box;
  padding: 0 1px 10px; overflow-wrap: anywhere; --track: rgba(138, 143, 152, .25);
  background: linear-gradient({RUN_COLOURS["full"]} 0 0) 0 calc(100% - 5px) / var(--full) 3px no-repeat,
    linear-gradient({RUN_COLOURS["withdrawn"]} 0 0) 0 calc(100% - 1px) / var(--withdrawn) 3px no-repeat,
    linear-gradient(var(--track) 0 0) 0 calc(100% - 5px) / 100% 3px no-repeat,
    linear-gradient(var(--track) 0 0) 0 calc(100% - 1px) / 100% 3px no-repeat;
  -webkit-print-color-adjust: exact; print-color-adjust: exact;}}
.differences .differs {{text-decoration: underline dotted {RUN_COLOURS["withdrawn"]} 2px; text-underline-offset: 3px;}}
.differences .first {{border: 2px solid {RUN_COLOURS["withdrawn"]}; padding: 0 4px 10px; font-weight: 700;}}
.differences .first small {{display: block; font-size: 11px; font-weight: 400; line-height: 1.4;}}
.differences .missing {{background: none; padding-bottom: 0;}}
.differences .key {{margin-top: 8px; font-size: 12px;}}
.differences .key i {{display: inline-block; width: 18px; height: 3px; vertical-align: middle; margin: 0 4px 0 0;}}
.differences .key .full {{background: {RUN_COLOURS["full"]};}}
.differences .key .withdrawn {{background: {RUN_COLOURS["withdrawn"]}; margin-left: 8px;}}
"""


def differences_html(probabilities: AnswerProbabilities) -> str:
    """Both answers, the first difference framed, what differs after it underlined; two bars under each token are its
    probability, in the full run and withdrawn.

    Looks as it should with `DIFFERENCES_CSS`.
    """
    layer, first = probabilities.layer, probabilities.first_difference
    answers: dict[RunName, tuple[AnswerToken, ...]] = {"full": probabilities.full, "withdrawn": probabilities.withdrawn}
    differing = _differing(probabilities)
    rows = "".join(
        f'<h3>{run_title(run, layer)}</h3><p class="tokens">{_row(answer, layer, first, differing[run])}</p>'
        for run, answer in answers.items()
    )
    key = (
        '<p class="key">Bars: probability of a token <i class="full"></i>where every layer sees the picture '
        f'<i class="withdrawn"></i>withdrawn at layer {layer}</p>'
    )
    return f'<div class="differences">{rows}{key}</div>'


def differences_reading(probabilities: AnswerProbabilities) -> str:
    """Where the answers part, and how likely each run finds both tokens there."""
    layer, first = probabilities.layer, probabilities.first_difference
    if first is None:
        least = min(probabilities.full, key=lambda token: min(token.full, token.withdrawn))
        shares = f"{percent(least.full)} in full and {percent(least.withdrawn)} withdrawn at layer {layer}"
        if len(probabilities.full) == 1:
            return f"Both runs give the same token, {_named(least)}, which has {shares}."
        same = f"Both runs give the same {len(probabilities.full)} tokens"
        return f"{same}; the least certain, {_named(least)}, has {shares}."
    full, withdrawn = probabilities.full[first:], probabilities.withdrawn[first:]
    said = f"The answers part at token {first + 1}"
    if full and withdrawn:
        return (
            f"{said}: the full model gives {_named(full[0])} {percent(full[0].full)} and {_named(withdrawn[0])} "
            f"{percent(withdrawn[0].full)}, withdrawn at layer {layer} it gives {percent(full[0].withdrawn)} and "
            f"{percent(withdrawn[0].withdrawn)}."
        )
    longer, token = ("full", full[0]) if full else ("withdrawn", withdrawn[0])
    return (
        f"{said}, which only the {longer} run's answer has: {_named(token)}, with {percent(token.full)} in full and "
        f"{percent(token.withdrawn)} withdrawn at layer {layer}."
    )


def differences_table(probabilities: AnswerProbabilities) -> Table:
    """A row for each token of both answers."""
    rows = [
        (run, number, token.text, 100 * token.full, 100 * token.withdrawn)
        for run, answer in (("full", probabilities.full), ("withdrawn", probabilities.withdrawn))
        for number, token in enumerate(answer, start=1)
    ]
    return Table(("answer", "token (counted from 1)", "text", "full (%)", "withdrawn (%)"), tuple(rows))


def _differing(probabilities: AnswerProbabilities) -> dict[RunName, set[int]]:
    """By run, the tokens from the first difference on that have no counterpart in the other answer."""
    first = probabilities.first_difference
    if first is None:
        return {"full": set(), "withdrawn": set()}
    tails = [[token.token_id for token in answer[first:]] for answer in (probabilities.full, probabilities.withdrawn)]
    matcher = SequenceMatcher(None, tails[0], tails[1], autojunk=False)
    full: set[int] = set()
    withdrawn: set[int] = set()
    for kind, begin, end, other_begin, other_end in matcher.get_opcodes():
        if kind != "equal":
            full.update(range(first + begin, first + end))
            withdrawn.update(range(first + other_begin, first + other_end))
    return {"full": full, "withdrawn": withdrawn}


def _row(answer: Sequence[AnswerToken], layer: int, first: int | None, differing: set[int]) -> str:
    words: list[list[str]] = []
    for index, token in enumerate(answer):
        if index == 0 or token.text[:1].isspace() or token.text == "(end)":
            words.append([])
        words[-1].append(_token(token, layer, index == first, index in differing))
    if first == len(answer):
        words.append(['<span class="token first missing"><small>first difference</small>stops here</span>'])
    # A space between words is copied with them.
    return " ".join(f'<span class="word">{"".join(word)}</span>' for word in words)


def _token(token: AnswerToken, layer: int, is_first: bool, differs: bool) -> str:
    label = escape(f"{_named(token)}: full {_exact(token.full)}, withdrawn at {layer}: {_exact(token.withdrawn)}")
    kind = " first" if is_first else " differs" if differs else ""
    return (
        f'<span class="token explained{kind}" tabindex="0" role="group" aria-label="{label}" data-explained="{label}" '
        f'style="--full:{100 * token.full:.1f}%;--withdrawn:{100 * token.withdrawn:.1f}%">'
        f"{'<small>first difference</small>' if is_first else ''}{escape(_visible(token.text))}</span>"
    )


def _named(token: AnswerToken) -> str:
    return f"“{_visible(token.text)}”"


def _visible(text: str) -> str:
    return text.strip() or "␣"


def _exact(probability: float) -> str:
    """With a digit after the point, so that 98.2 % and 98.4 % are told apart."""
    return f"{100 * probability:.1f} %" if probability >= 0.001 else percent(probability)


def _plot(analysis: Analysis, view: View) -> Plot:
    probabilities = analysis.of("probabilities")
    return Plot(
        "differences",
        "Where the answers part",
        differences_reading(probabilities),
        partial(differences_table, probabilities),
        html=differences_html(probabilities),
    )


TAB = Tab("differences", "Differences", lambda view: (Part("probabilities"),), _plot, is_html=True)
