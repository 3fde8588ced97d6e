"""Two comparisons laid over each other: the picture's share of attention, and the divergence by K, of both."""

import math
from dataclasses import dataclass
from functools import partial
from html import escape
from itertools import accumulate

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vtw_demo.formats import shortened
from vtw_demo.measurements.attention import AttentionMass
from vtw_demo.plots.attention import why_gaps
from vtw_demo.plots.divergence import exponent, floored
from vtw_demo.plots.style import TRACES, add_line, styled
from vtw_demo.plots.templates import reading
from vtw_demo.withdrawal.segments import Segment

# Blue and orange of Okabe and Ito, told apart by symbols too.
COLOURS, SYMBOLS = ("#0072B2", "#E69F00"), ("circle", "diamond")
LABEL_POSITIONS = ("top center", "bottom center")
short = partial(shortened, longest=28)


@dataclass(frozen=True)
class Overlaid:
    """A comparison as it is laid over another."""

    name: str
    layer: int
    mass_full: AttentionMass
    mass_withdrawn: AttentionMass
    kl: tuple[float, ...]  # by K, the divergence of the token after the prompt

    @property
    def layers(self) -> int:
        return self.mass_full.layers


def overlay_figure(first: Overlaid, second: Overlaid) -> go.Figure:
    """Left the picture's share of the last prompt token's attention by layer, right the KL divergence by K."""
    figure = make_subplots(cols=2, horizontal_spacing=0.06, subplot_titles=("the picture's share", "divergence by K"))
    figure.update_annotations(font={"size": 13})
    for index, overlaid in enumerate((first, second)):
        name, line, symbol = escape(short(overlaid.name)), {"color": COLOURS[index]}, SYMBOLS[index]
        withdrawn = f"withdrawn at {overlaid.layer}"
        runs = (("full", "solid", overlaid.mass_full), (withdrawn, "dash", overlaid.mass_withdrawn))
        for run, dash, mass in runs:
            layers = list(range(mass.layers))
            shares = [None if share is None else 100 * share for share in _picture_shares(mass)]
            said, look = "layer %{x}: the picture gets %{y:.1f} %<extra>%{fullData.name}</extra>", line | {"dash": dash}
            add_line(figure, layers, shares, f"{name}, {run}", look, said, marker={"symbol": symbol}, row=1, col=1)
        said = "K = %{x}: KL %{customdata:.2g}<extra>%{fullData.name}</extra>"
        more = {"customdata": overlaid.kl, "marker": {"symbol": symbol}, "showlegend": False, "row": 1, "col": 2}
        add_line(figure, list(range(1, overlaid.layers)), floored(overlaid.kl), name, line, said, **more)
        # At K = L nothing is withdrawn, and nothing diverges.
        if overlaid.layer < overlaid.layers:
            figure.add_scatter(
                x=[overlaid.layer],
                y=floored(overlaid.kl[overlaid.layer - 1 : overlaid.layer]),
                marker={"symbol": f"{symbol}-open", "size": 15, "color": COLOURS[index], "line": {"width": 2}},
                text=f"K = {overlaid.layer}",
                textposition=LABEL_POSITIONS[index],
                **TRACES["overlaid layer"],
                row=1,
                col=2,
            )
    most = max(first.layers, second.layers)
    exponents = [exponent(kl) for kl in (*first.kl, *second.kl)]
    # Room for the labels of both K.
    ranges = {"xaxis_range": [-0.5, most - 0.5], "yaxis2_range": [min(exponents) - 0.7, max(exponents) + 1.2]}
    figure.update_xaxes(dtick=math.ceil(most / 6), range=[0.5, most - 0.5])
    return styled(figure, "overlay", **ranges)


def overlay_reading(first: Overlaid, second: Overlaid) -> str:
    halves, gaps = (_half(first), _half(second)), why_gaps(first.mass_full) or why_gaps(second.mass_full)
    return reading("overlay", first=first, second=second, halves=halves, short=short, gaps=gaps)


def _picture_shares(mass: AttentionMass) -> list[float | None]:
    image = mass.segments.index(Segment.IMAGE)
    return [None if shares is None else shares[image] for shares in mass.last_prompt]


def _half(overlaid: Overlaid) -> int:
    """The layer by which half of the full model's attention to the picture is given."""
    given = list(accumulate(share or 0 for share in _picture_shares(overlaid.mass_full)))
    return next(layer for layer, so_far in enumerate(given) if so_far >= given[-1] / 2)
