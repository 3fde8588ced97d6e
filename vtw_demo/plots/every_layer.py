"""What an answer costs at each withdrawal layer."""

from collections.abc import Sequence

import plotly.graph_objects as go

from vtw_demo.comparison.compare import LayerAnswer, first_stable_layer
from vtw_demo.comparison.timed_generate import Run
from vtw_demo.plots.style import RUN_COLOURS, add_line, layer_ticks, styled
from vtw_demo.plots.tab import Table
from vtw_demo.plots.templates import reading


def answer_times_figure(full: Run, answers: Sequence[LayerAnswer]) -> go.Figure:
    """Prefill and decode time by K, with the full run's as level lines."""
    figure = go.Figure()
    layers = [answer.layer for answer in answers]
    stages = (
        ("prefill", "#0072B2", "prefill_ms"),
        ("decode, per token", RUN_COLOURS["withdrawn"], "decode_ms_per_token"),
    )
    for name, colour, stage in stages:
        level, times = getattr(full, stage), [getattr(answer.run, stage) for answer in answers]
        if level is None:
            continue
        said = f"K = %{{x}}, {name}: %{{y:.2f}} ms<extra></extra>"
        add_line(figure, layers, times, name, {"color": colour}, said)
        figure.add_hline(
            y=level,
            line={"dash": "dot", "width": 1.5, "color": colour},
            annotation={"text": f"{name}, full", "font": {"size": 11}},
            annotation_position="top left",
        )
    return styled(figure, "every layer", xaxis_dtick=layer_ticks(len(layers)))


def stable_sentence(full: Run, answers: Sequence[LayerAnswer]) -> str:
    ends = {"first": answers[0].layer, "last": answers[-1].layer}
    return reading("every_layer", stable=first_stable_layer(full, answers), **ends)


def answer_times_table(full: Run, answers: Sequence[LayerAnswer]) -> Table:
    """A row for each K, and one for the full run, whose K is empty."""
    stages = ("prefill_ms", "decode_ms_per_token", "after_encoding_ms")
    rows = [
        (layer, run.answer, run.tokens == full.tokens, len(run.tokens), *(getattr(run, stage) for stage in stages))
        for layer, run in [*((answer.layer, answer.run) for answer in answers), (None, full)]
    ]
    times = ("prefill (ms)", "decode per token (ms)", "total without encoding (ms)")
    columns = ("K", "answer", "same as full", "tokens", *times)
    return Table(columns, tuple(rows))
