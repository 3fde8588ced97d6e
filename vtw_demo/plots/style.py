"""What all figures share: colours, and a style that suits light and dark.

Text and grid lines get their colours from the page's style sheet (`vtw_demo.page.theme`), because a figure doesn't
know whether it is shown in light or dark.
"""

from __future__ import annotations

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


def styled(figure: go.Figure) -> go.Figure:
    """The figure in the project's style, without a background of its own."""
    return figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font=FONT,
        margin={"l": 56, "r": 12, "t": 34, "b": 40},
        autosize=True,
    )
