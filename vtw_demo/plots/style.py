"""What all figures share: colours, and a style that suits light and dark.

Text and grid lines get their colours from the page's style sheet (`vtw_demo.page.layout`), because a figure doesn't
know whether it is shown in light or dark.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from vtw_demo.comparison.compare import RunName
from vtw_demo.withdrawal.segments import Segment

# Colours of Okabe and Ito, which colour-blind people can tell apart; one for each segment, everywhere.
SEGMENT_COLOURS = {
    Segment.FIRST_TOKEN: "#0072B2",
    Segment.SYSTEM_TEXT: "#56B4E9",
    Segment.IMAGE: "#E69F00",
    Segment.QUESTION: "#009E73",
    Segment.ANSWER: "#CC79A7",
}
RUN_COLOURS: dict[RunName, str] = {"full": "#8A8F98", "withdrawn": "#D55E00"}
K_LINE = {"dash": "dash", "width": 2, "color": RUN_COLOURS["withdrawn"]}
FONT = {"family": "system-ui, sans-serif", "size": 12}


LEGEND_ABOVE = {"x": 0, "y": 1.02, "yanchor": "bottom"}
LEGEND_BELOW = {"x": 0, "yref": "container", "y": 0, "yanchor": "bottom"}


def styled(figure: go.Figure, **layout: Any) -> go.Figure:
    """The figure in the project's style, without a background of its own; `layout` is set besides."""
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font=FONT,
        margin={"l": 56, "r": 12, "t": 34, "b": 40},
        autosize=True,
        legend={"orientation": "h", "x": 0},
    )
    figure.update_xaxes(automargin=True)
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
