"""How far withdrawal at each K moves the next token: the calibration's curve, one question's, and the FLOPs left."""

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from vtw_demo.comparison.calibration import Calibration
from vtw_demo.formats import count
from vtw_demo.measurements.query_sweep import QuerySweep
from vtw_demo.plots.style import TRACES, add_line, layer_ticks, mark_k, styled
from vtw_demo.plots.tab import Cell, Table, View
from vtw_demo.plots.templates import reading

FLOOR = 1e-6  # where a logarithmic axis ends; divergences below it are of rounding
CURVE_COLOUR, QUERY_COLOUR, FLOPS_COLOUR = "#0072B2", "#CC79A7", "#009E73"


def divergence_figure(query: QuerySweep | None, calibration: Calibration | None) -> go.Figure:
    """KL divergence by K on a logarithmic axis, with what is known of it; the share of FLOPs left on a second axis."""
    figure = go.Figure()
    layers: Sequence[int] = ()
    flops_left = None
    if query is not None:
        layers, flops_left = query.layers, query.flops_left
    if calibration is not None:
        layers, flops_left = calibration.layers, calibration.flops_left
        low, high = calibration.quantile(0.1), calibration.quantile(0.9)
        figure.add_scatter(x=layers, y=floored(high), **TRACES["upper end"])
        figure.add_scatter(x=layers, y=floored(low), **TRACES["band"])
        said, mean = "K = %{x}: mean KL %{customdata:.2g}<extra></extra>", calibration.mean
        name = f"mean of {count(len(calibration.samples), 'sample')}"
        add_line(figure, layers, floored(mean), name, {"color": CURVE_COLOUR}, said, customdata=mean)
        figure.add_hline(y=calibration.threshold, line={"dash": "dot", "width": 1.5, "color": CURVE_COLOUR})
        # A logarithmic axis wants an annotation's exponent, which add_hline's own annotation hasn't.
        named = {"y": exponent(calibration.threshold), "text": f"threshold {calibration.threshold:g}"}
        figure.add_annotation(**named, **TRACES["threshold"])
        mark_k(figure, calibration.nearest_layer, annotation_position="top left")
    if query is not None:
        lines = [("this question", query.kl, "diamond")]
        if query.is_of_several_words:
            lines.append(("its whole answer, mean of its tokens", query.answer_mean_kl, "circle-open"))
        for name, kl, symbol in lines:
            said, more = f"K = %{{x}}: KL of {name} %{{customdata:.2g}}<extra></extra>", {"marker": {"symbol": symbol}}
            add_line(figure, layers, floored(kl), name, {"color": QUERY_COLOUR}, said, customdata=kl, **more)
    if flops_left is not None:
        said, look = "K = %{x}: %{y:.0f} % of the FLOPs left<extra></extra>", {"color": FLOPS_COLOUR, "dash": "dashdot"}
        percents = [100 * share for share in flops_left]
        add_line(figure, layers, percents, "prefill FLOPs left (right axis)", look, said, yaxis="y2", mode="lines")
    return styled(figure, "divergence", xaxis_dtick=layer_ticks(len(layers)))


def divergence_reading(query: QuerySweep | None, calibration: Calibration | None) -> str:
    """What the calibration chose, and whether this question, or its answer, needs more layers or fewer."""
    threshold = View(calibration).threshold
    kl = () if query is None else query.answer_mean_kl if query.is_of_several_words else query.kl
    needed = max((k for k, moved in enumerate(kl, start=1) if moved > threshold), default=0) + 1
    return reading("divergence", query=query, calibration=calibration, threshold=threshold, needed=needed)


def divergence_table(query: QuerySweep, calibration: Calibration | None) -> Table:
    columns: dict[str, Sequence[Cell]] = {
        "K": query.layers,
        "first token KL (nats)": query.kl,
        "mean answer KL (nats)": query.answer_mean_kl,
    }
    for name, left in (("prefill FLOPs left (%)", query.flops_left), ("prompt cache left (%)", query.cache_left)):
        columns[name] = [None] * len(query.kl) if left is None else [100 * share for share in left]
    if calibration is not None:
        columns["mean KL of the calibration (nats)"] = calibration.mean
        columns["10th percentile (nats)"] = calibration.quantile(0.1)
        columns["90th percentile (nats)"] = calibration.quantile(0.9)
    return Table(tuple(columns), tuple(zip(*columns.values(), strict=True)))


def floored(values: Sequence[float]) -> list[float]:
    return [max(FLOOR, value) for value in values]


def exponent(kl: float) -> float:
    return math.log10(max(FLOOR, kl))
