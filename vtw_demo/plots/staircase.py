"""What is left in each layer: tokens, FLOPs and KV cache as a staircase, and the measured time under it."""

from operator import attrgetter

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vtw_demo.comparison.compare import RunName
from vtw_demo.comparison.repeated_timing import LayerTimes
from vtw_demo.formats import amount, decimal_multiple
from vtw_demo.measurements.flops import LayerCost, Staircase
from vtw_demo.plots.style import LAYOUTS, RUN_COLOURS, mark_layer, styled
from vtw_demo.plots.tab import Surface, Table
from vtw_demo.plots.templates import reading

_FIELDS: dict[Surface, str] = {"tokens": "tokens", "FLOPs": "flops", "KV cache bytes": "kv_cache_bytes"}
_UNITS: dict[Surface, str] = {"tokens": "tokens", "FLOPs": "FLOPs", "KV cache bytes": "B"}
_FILLS: dict[RunName, str] = {
    "full": "rgba(138, 143, 152, 0.3)",
    "withdrawn": "rgba(213, 94, 0, 0.4)",
    "beside": "rgba(0, 114, 178, 0.2)",
}


def staircase_figure(stairs: Staircase, times: LayerTimes | None, surface: Surface) -> go.Figure:
    """Above, what each layer works on in each run, as areas whose surface is the sum that the legend names; below, if
    it is known, the time that each layer took. K is marked."""
    rows = 1 if times is None else 2
    heights = None if times is None else [0.6, 0.4]
    figure = make_subplots(rows=rows, shared_xaxes=True, vertical_spacing=0.07, row_heights=heights)
    layers = list(range(len(stairs.full)))
    last, value = layers[-1], attrgetter(_FIELDS[surface])
    scale, prefix = (1, "") if surface == "tokens" else decimal_multiple(max(map(value, stairs.full)))
    unit = f"{prefix}{_UNITS[surface]}"
    runs: dict[RunName, tuple[str, tuple[LayerCost, ...], LayerCost]] = {
        "full": ("full", stairs.full, stairs.full_total),
        "withdrawn": (f"withdrawn at layer {stairs.layer}", stairs.withdrawn, stairs.withdrawn_total),
    }
    if stairs.beside is not None and stairs.beside_total is not None:
        runs["beside"] = ("beside it", stairs.beside, stairs.beside_total)
    for run, (name, costs, total) in runs.items():
        heights = [value(cost) / scale for cost in costs]
        figure.add_scatter(
            # A point in the middle of each layer, where the pointer finds it, and one at either end of the stairs.
            x=[-0.5, *layers, last + 0.5],
            y=[heights[0], *heights, heights[-1]],
            customdata=[0, *layers, last],
            mode="lines",
            line={"shape": "hvh", "color": RUN_COLOURS[run], "width": 2},
            fill="tozeroy",
            fillcolor=_FILLS[run],
            name=f"{name}: {_total(value(total), surface)} in all",
            legendgroup=run,
            hovertemplate=f"{run}, layer %{{customdata}}: %{{y:,.4~g}} {unit}<extra></extra>",
            row=1,
            col=1,
        )
        if times is not None:
            figure.add_bar(
                x=layers,
                y=getattr(times, run),
                marker={"color": RUN_COLOURS[run], "line": {"width": 0}},
                name=name,
                legendgroup=run,
                showlegend=False,
                hovertemplate=f"{run}, layer %{{x}}: %{{y:.2f}} ms<extra></extra>",
                row=2,
                col=1,
            )
    mark_layer(figure, stairs.layer, len(layers), *((row, 1) for row in range(1, rows + 1)))
    figure.update_xaxes(title="decoder layer, counted from 0", row=rows, col=1)
    heading = f"prompt's KV cache in {unit}" if surface == "KV cache bytes" else unit
    styled(figure, "staircase", yaxis_title_text=heading)
    if times is not None:
        figure.update_layout(LAYOUTS["staircase with times"])
    return figure


def staircase_reading(stairs: Staircase, times: LayerTimes | None) -> str:
    """What withdrawal saves, and the time that the layers from K on took."""
    return reading("staircase", stairs=stairs, times=times, layers=len(stairs.full))


def staircase_table(stairs: Staircase, times: LayerTimes | None) -> Table:
    unknown = (None,) * len(stairs.full)
    rows = tuple(
        (run, layer, cost.tokens, cost.flops, cost.kv_cache_bytes, time)
        for run in RUN_COLOURS
        if (costs := getattr(stairs, run)) is not None
        for layer, (cost, time) in enumerate(zip(costs, getattr(times, run, unknown), strict=True))
    )
    return Table(("run", "layer", "tokens", "FLOPs", "KV cache (B)", "time (ms)"), rows)


def _total(value: int, surface: Surface) -> str:
    return f"{value:,} tokens" if surface == "tokens" else amount(value, _UNITS[surface])
