"""The page's plots: pure functions from plain data to plotly figures, and a sentence that reads each.

Text and grid lines get their colours from the page's style sheet (`vtw_demo.page.theme`), because a figure doesn't
know whether it is shown in light or dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vtw_demo.attention import AttentionMass, Shares
from vtw_demo.compare import Comparison, RunName
from vtw_demo.page.answers import run_title
from vtw_demo.page.formats import milliseconds, percent
from vtw_demo.segments import Segment
from vtw_demo.timed_run import Run

AttentionQuery = Literal["last prompt token", "mean over the answer's tokens"]
LAST_PROMPT: AttentionQuery = "last prompt token"
ANSWER_MEAN: AttentionQuery = "mean over the answer's tokens"

# Colours of Okabe and Ito, which colour-blind people can tell apart; one for each segment, everywhere.
SEGMENT_COLOURS = {
    Segment.FIRST_TOKEN: "#0072B2",
    Segment.SYSTEM_TEXT: "#56B4E9",
    Segment.IMAGE: "#E69F00",
    Segment.QUESTION: "#009E73",
    Segment.ANSWER: "#CC79A7",
}
RUN_COLOURS: dict[RunName, str] = {"full": "#8A8F98", "withdrawn": "#D55E00"}
FONT = {"family": "system-ui, sans-serif", "size": 12}


def shares_by_layer(mass: AttentionMass, query: AttentionQuery) -> tuple[Shares, ...]:
    """(layers, segments) of the chosen query; the last prompt token's where there is no answer."""
    return mass.answer_mean if query == ANSWER_MEAN and mass.answer else mass.last_prompt


def attention_figure(full: AttentionMass, withdrawn: AttentionMass, query: AttentionQuery) -> go.Figure:
    """Both runs side by side on the same axes: a bar a layer, its segments stacked to 100 %, K marked."""
    layer = _withdrawal_layer(withdrawn)
    figure = make_subplots(
        cols=2,
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=("every layer sees the picture", f"withdrawn at layer {layer}"),
    )
    figure.update_annotations(font={"size": 13})
    layers = list(range(full.layers))
    for column, mass in enumerate((full, withdrawn), start=1):
        shares = shares_by_layer(mass, query)
        for index, name in enumerate(mass.segments):
            figure.add_bar(
                x=layers,
                y=[100 * of_layer[index] for of_layer in shares],
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                marker={"color": SEGMENT_COLOURS[Segment(name)], "line": {"width": 0}},
                hovertemplate=f"layer %{{x}}, {name}: %{{y:.1f}} %<extra></extra>",
                row=1,
                col=column,
            )
        # At K = L nothing is withdrawn, and there is no layer to mark.
        if layer < full.layers:
            figure.add_vline(x=layer - 0.5, line={"dash": "dash", "width": 2, "color": "#D55E00"}, row=1, col=column)
    figure.update_layout(barmode="stack", bargap=0.08, height=330, legend={"orientation": "h", "y": -0.22, "x": 0})
    figure.update_xaxes(title={"text": "decoder layer, counted from 0", "standoff": 4}, range=[-0.5, full.layers - 0.5])
    figure.update_xaxes(dtick=1 if full.layers <= 16 else 4)
    figure.update_yaxes(range=[0, 100], ticksuffix=" %")
    figure.update_yaxes(title={"text": "share of attention", "standoff": 4}, row=1, col=1)
    return _styled(figure)


def attention_reading(full: AttentionMass, withdrawn: AttentionMass, query: AttentionQuery) -> str:
    layer = _withdrawal_layer(withdrawn)
    image = full.segments.index(Segment.IMAGE)
    shares = [of_layer[image] for of_layer in shares_by_layer(full, query)]
    asker = "the last prompt token" if query == LAST_PROMPT else "the answer's tokens"
    if layer == full.layers:
        return f"Over all layers the picture gets {percent(_mean(shares))} of the attention of {asker}."
    early, late = _mean(shares[:layer]), _mean(shares[layer:])
    return (
        f"Seen by every layer, the picture gets {percent(late)} of the attention of {asker} in "
        f"{_layers(layer, full.layers - 1)}, after {percent(early)} in {_layers(0, layer - 1)}; "
        f"withdrawn at layer {layer}, it gets none from there on."
    )


def timing_figure(comparison: Comparison) -> go.Figure:
    """Time per stage, a pair of bars each, with its figure on each bar."""
    figure = go.Figure()
    stages = stage_times(comparison)
    for run in RUN_COLOURS:
        times = [times[run] for times in stages.values()]
        figure.add_bar(
            x=list(stages),
            y=times,
            name=run_title(run, comparison.layer),
            marker={"color": RUN_COLOURS[run]},
            text=[milliseconds(time).removesuffix(" ms") for time in times],
            textposition="outside",
            textfont={"size": 11},
            constraintext="none",
            cliponaxis=False,
            hovertemplate="%{x}: %{y:.2f} ms<extra></extra>",
        )
    figure.update_layout(barmode="group", bargap=0.25, height=330, legend={"orientation": "h", "y": -0.22, "x": 0})
    figure.update_xaxes(title={"text": "stage", "standoff": 4})
    figure.update_yaxes(title={"text": "time in ms", "standoff": 4}, rangemode="tozero")
    return _styled(figure)


def stage_times(comparison: Comparison) -> dict[str, dict[RunName, float | None]]:
    """Milliseconds by stage and run; a stage that neither run had is left out."""
    runs: dict[RunName, Run] = {"full": comparison.full, "withdrawn": comparison.withdrawn}
    times: dict[RunName, tuple[float | None, ...]] = {
        name: (run.encode_ms, run.prefill_ms, run.decode_ms_per_token, run.total_ms) for name, run in runs.items()
    }
    stages = ("image<br>encoding", "prefill", "decode,<br>per token", "total")
    by_stage = {stage: {run: of_run[i] for run, of_run in times.items()} for i, stage in enumerate(stages)}
    return {stage: pair for stage, pair in by_stage.items() if any(time is not None for time in pair.values())}


def timing_reading(comparison: Comparison) -> str:
    full, withdrawn = comparison.full, comparison.withdrawn
    parts = [f"withdrawn, prefill took {milliseconds(withdrawn.prefill_ms)} instead of {milliseconds(full.prefill_ms)}"]
    if full.decode_ms_per_token is not None and withdrawn.decode_ms_per_token is not None:
        parts.append(
            f"each further token {milliseconds(withdrawn.decode_ms_per_token)} instead of "
            f"{milliseconds(full.decode_ms_per_token)}"
        )
    parts.append("encoding the image is the same work in both runs")
    return f"{'; '.join(parts)}.".capitalize()


def _withdrawal_layer(mass: AttentionMass) -> int:
    if mass.withdrawal_layer is None:
        raise ValueError("This attention mass is of a run without withdrawal: there is no layer K to mark.")
    return mass.withdrawal_layer


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _layers(first: int, last: int) -> str:
    return f"layer {first}" if first == last else f"layers {first} to {last}"


def _styled(figure: go.Figure) -> go.Figure:
    return figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font=FONT,
        margin={"l": 56, "r": 12, "t": 34, "b": 40},
        autosize=True,
    )
