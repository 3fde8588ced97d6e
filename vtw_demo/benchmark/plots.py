"""Measured against theory: what is left of each stage's time at each withdrawal layer."""

from collections.abc import Sequence

import plotly.graph_objects as go

from vtw_demo.benchmark.costs import STAGES, AnswerCosts
from vtw_demo.plots.style import RUN_COLOURS, add_line, styled

_COLOURS = dict(zip(STAGES, ("#E69F00", "#0072B2", "#D55E00", "#009E73"), strict=True))


def benchmark_figure(costs: Sequence[AnswerCosts], title: str) -> go.Figure:
    """A line for each stage, its spread over the rounds, and what theory says is left of prefill and cache."""
    figure = go.Figure()
    at = [cost for cost in costs if cost.layer is not None]
    layers = [cost.layer for cost in at]
    for index, stage in enumerate(STAGES):
        medians = [100 * cost.ratio(stage) for cost in at]
        spread = {
            "array": [100 * (max(cost.ratios[index]) - cost.ratio(stage)) for cost in at],
            "arrayminus": [100 * (cost.ratio(stage) - min(cost.ratios[index])) for cost in at],
            "thickness": 1,
        }
        said = f"K = %{{x}}, {stage}: %{{y:.0f}} % of the bare model's<extra></extra>"
        add_line(figure, layers, medians, stage, {"color": _COLOURS[stage]}, said, error_y=spread)
    for name, shares, dash in (
        ("FLOPs left in the prefill", [cost.flops_left for cost in at], "dot"),
        ("KV cache left", [cost.cache_left for cost in at], "dash"),
    ):
        if all(share is not None for share in shares):
            said = f"K = %{{x}}, {name}: %{{y:.0f}} %<extra></extra>"
            look = {"dash": dash, "color": RUN_COLOURS["full"]}
            percents = [100 * (share or 0) for share in shares]
            add_line(figure, layers, percents, f"theory: {name}", look, said, mode="lines")
    figure.update_xaxes(title={"text": "withdrawal layer K"})
    figure.update_yaxes(title={"text": "time, in % of the bare model's"}, rangemode="tozero", ticksuffix=" %")
    return styled(figure, title={"text": title, "font": {"size": 13}}, height=420)
