"""Where time goes: both runs, stage by stage."""

from __future__ import annotations

import plotly.graph_objects as go

from vtw_demo.compare import Comparison, RunName
from vtw_demo.figures.formats import milliseconds, run_title
from vtw_demo.figures.style import RUN_COLOURS, styled
from vtw_demo.timed_run import Run


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
    return styled(figure)


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
