"""What an answer costs at each withdrawal layer."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from vtw_demo.answers_by_layer import LayerAnswer
from vtw_demo.figures.style import RUN_COLOURS, styled
from vtw_demo.timed_run import Run


def layer_times_figure(full: Run, answers: Sequence[LayerAnswer]) -> go.Figure:
    """Prefill and decode time by K, with the full run's as level lines."""
    figure = go.Figure()
    layers = [answer.layer for answer in answers]
    stages = (
        ("prefill", "#0072B2", full.prefill_ms, [answer.run.prefill_ms for answer in answers]),
        (
            "decode, per token",
            RUN_COLOURS["withdrawn"],
            full.decode_ms_per_token,
            [answer.run.decode_ms_per_token for answer in answers],
        ),
    )
    for name, colour, level, times in stages:
        if level is None:
            continue
        figure.add_scatter(
            x=layers,
            y=times,
            mode="lines+markers",
            line={"color": colour},
            name=name,
            hovertemplate=f"K = %{{x}}, {name}: %{{y:.2f}} ms<extra></extra>",
        )
        figure.add_hline(
            y=level,
            line={"dash": "dot", "width": 1.5, "color": colour},
            annotation={"text": f"{name}, full", "font": {"size": 11}},
            annotation_position="top left",
        )
    figure.update_layout(height=330, legend={"orientation": "h", "y": -0.22, "x": 0})
    figure.update_xaxes(title={"text": "withdrawal layer K", "standoff": 4}, dtick=1 if len(layers) <= 16 else 4)
    figure.update_yaxes(title={"text": "time in ms", "standoff": 4}, rangemode="tozero")
    return styled(figure)
