"""What all figures share: colours, and a style that suits light and dark: text and grid lines get their colours from
the page's style sheet, because a figure doesn't know which it is shown in."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from vtw_demo.comparison.compare import RunName
from vtw_demo.files import data_beside
from vtw_demo.withdrawal.segments import Segment

# Colours of Okabe and Ito, which colour-blind people can tell apart; one for each segment, everywhere.
SEGMENT_COLOURS = dict(zip(Segment, ("#0072B2", "#56B4E9", "#E69F00", "#009E73", "#CC79A7"), strict=True))
RUN_COLOURS: dict[RunName, str] = {"full": "#8A8F98", "withdrawn": "#D55E00", "beside": "#0072B2"}
K_LINE = {"dash": "dash", "width": 2, "color": RUN_COLOURS["withdrawn"]}
LAYOUTS: dict[str, dict[str, Any]] = data_beside(__file__, "layouts.json")
"""Of every figure, and what each plot has besides, by the plot's name."""
TRACES: dict[str, dict[str, Any]] = data_beside(__file__, "traces.json")
"""How a plot's traces look, whatever is measured."""


def styled(figure: go.Figure, name: str = "", **layout: Any) -> go.Figure:
    """The figure in the project's style, with the layout called `name` and then `layout`."""
    figure.update_layout(LAYOUTS["every figure"]).update_xaxes(automargin=True)
    figure.update_layout(LAYOUTS[name] if name else {})
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(title_standoff=4, selector=lambda axis: axis.title.standoff is None)
    return figure.update_layout(**layout)


def add_line(
    figure: go.Figure, x: Sequence[Any], y: Sequence[Any], name: str, line: dict[str, Any], said: str, **trace: Any
) -> None:
    """A line with markers, unless `trace` has another mode; `said` is its hover template."""
    figure.add_scatter(x=x, y=y, name=name, line=line, hovertemplate=said, **{"mode": "lines+markers", **trace})


def mark_k(figure: go.Figure, layer: int, **annotation: Any) -> None:
    """A line at a withdrawal layer, on an axis of these."""
    figure.add_vline(x=layer, line=K_LINE, annotation={"text": f"K = {layer}", "font": {"size": 12}}, **annotation)


def shown_token(token: str) -> str:
    """A token as it can be seen, blank ones too."""
    return token.strip() or "␣"


def shown_tokens(*tokens: str) -> dict[str, str]:
    """Several tokens as they can be seen, with their spaces where these alone tell one from another."""
    looks, spaces = Counter(map(shown_token, {*tokens})), str.maketrans(" \n", "␣⏎")
    return {
        token: shown_token(token) if looks[shown_token(token)] == 1 else token.translate(spaces) for token in tokens
    }


def layer_ticks(layers: int) -> int:
    """Every how many of so many layers an axis has a tick."""
    return 1 if layers <= 16 else 4


def mark_layer(figure: go.Figure, layer: int, layers: int, *places: tuple[int, int]) -> None:
    """Axes of all layers, and a line where the withdrawal layer begins in each subplot (row, column). At K = L nothing
    is withdrawn, and there is no layer to mark."""
    figure.update_xaxes(range=[-0.5, layers - 0.5], dtick=layer_ticks(layers))
    for row, column in places if layer < layers else ():
        figure.add_vline(x=layer - 0.5, line=K_LINE, row=row, col=column)
