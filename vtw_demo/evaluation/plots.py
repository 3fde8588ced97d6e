"""How much of a model's quality withdrawal keeps: accuracy and agreement, against the FLOPs left and by K."""

from __future__ import annotations

import io
from collections.abc import Sequence

import plotly.graph_objects as go
from matplotlib.figure import Figure

from vtw_demo.evaluation.evaluation import ALL, Evaluation, Figures
from vtw_demo.evaluation.intervals import Estimate
from vtw_demo.evaluation.ways import FULL, Way
from vtw_demo.formats import percent
from vtw_demo.plots.style import K_LINE, RUN_COLOURS, styled
from vtw_demo.plots.table import Table

ACCURACY_COLOUR, AGREEMENT_COLOUR = RUN_COLOURS["withdrawn"], "#0072B2"
SYMBOLS = {"random": "x", "renumbered": "diamond", "blind": "square", "fastv": "triangle-up"}
MARKERS = {"random": "x", "renumbered": "D", "blind": "s", "fastv": "^"}
KIND_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8A8F98", "#B8A800", "#5D3A9B")


def evaluation_figure(evaluation: Evaluation) -> go.Figure:
    """Accuracy and agreement with 95 % intervals, against the FLOPs left; against K where costs aren't known."""
    figure = go.Figure()
    of = evaluation.figures[ALL]
    against_flops = _flops_known(of)
    for name, colour in (("accuracy", ACCURACY_COLOUR), ("agreement", AGREEMENT_COLOUR)):
        for kind in ("withdrawn", *SYMBOLS):
            ways = _of_kind(of, kind)
            if not ways:
                continue
            found: list[Estimate] = [getattr(of[way], name) for way in ways]
            figure.add_scatter(
                x=[_place(way, of[way], against_flops, evaluation) for way in ways],
                y=[100 * one.mean for one in found],
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [100 * (one.high - one.mean) for one in found],
                    "arrayminus": [100 * (one.mean - one.low) for one in found],
                    "thickness": 1,
                    "width": 3,
                },
                text=[way.name for way in ways],
                mode="lines+markers" if kind == "withdrawn" else "markers",
                line={"color": colour},
                marker={"color": colour, "symbol": SYMBOLS.get(kind, "circle"), "size": 8},
                name=name if kind == "withdrawn" else f"{name}, {kind}",
                hovertemplate=f"%{{text}}: {name} %{{y:.1f}} %<extra></extra>",
            )
    title = "prefill FLOPs left" if against_flops else "withdrawal layer K"
    figure.update_layout(
        height=420,
        title={"text": f"{evaluation.data}: {evaluation.samples} questions", "font": {"size": 14}},
        xaxis={"title": {"text": title, "standoff": 4}, "ticksuffix": " %" if against_flops else ""},
        yaxis={"title": {"text": "share of the questions", "standoff": 4}, "ticksuffix": " %"},
        legend={"orientation": "h", "y": -0.2, "x": 0},
    )
    return styled(figure)


def kinds_figure(evaluation: Evaluation, calibrated: int | None = None) -> go.Figure:
    """Accuracy by K, a line for each kind of question; `calibrated` is marked."""
    figure = go.Figure()
    for number, (kind, of) in enumerate(evaluation.figures.items()):
        ways = _curve(of)
        figure.add_scatter(
            x=[_layer(way, evaluation) for way in ways],
            y=[100 * of[way].accuracy.mean for way in ways],
            mode="lines+markers",
            line={
                "color": "#555" if kind == ALL else KIND_COLOURS[number % len(KIND_COLOURS)],
                "width": 4 if kind == ALL else 2,
            },
            name=f"{kind} ({of[FULL].samples})",
            hovertemplate=f"{kind}, K = %{{x}}: %{{y:.1f}} %<extra></extra>",
        )
    if calibrated is not None:
        figure.add_vline(x=calibrated, line=K_LINE, annotation={"text": f"K = {calibrated}", "font": {"size": 12}})
    figure.update_layout(
        height=420,
        title={"text": f"{evaluation.data}: accuracy by kind of question", "font": {"size": 14}},
        xaxis={"title": {"text": "withdrawal layer K; the last is the full model", "standoff": 4}},
        yaxis={"title": {"text": "accuracy", "standoff": 4}, "ticksuffix": " %"},
        legend={"orientation": "h", "y": -0.2, "x": 0},
    )
    return styled(figure)


def evaluation_reading(evaluation: Evaluation, layer: int) -> str:
    """What withdrawal at `layer` keeps and saves, in one sentence."""
    of = evaluation.figures[ALL]
    found, full = of[Way("withdrawn", layer)], of[FULL]
    flops = "" if found.flops_left is None else f" with {percent(found.flops_left)} of the prefill's FLOPs"
    return (
        f"On {evaluation.data} ({evaluation.samples} questions), withdrawal at K = {layer} is right in "
        f"{100 * found.accuracy.mean:.1f} % and the full model in {100 * full.accuracy.mean:.1f} % "
        f"({_points(found.change)}), and {100 * found.agreement.mean:.1f} % of the answers are the full "
        f"model's{flops}."
    )


def evaluation_table(evaluation: Evaluation) -> Table:
    """A row for each kind of question and way to answer."""
    columns = (
        "kind",
        "way",
        "questions",
        "accuracy (%)",
        "accuracy, low (%)",
        "accuracy, high (%)",
        "change of accuracy (points)",
        "change, low (points)",
        "change, high (points)",
        "agreement (%)",
        "agreement, low (%)",
        "agreement, high (%)",
        "mean KL (nats)",
        "prefill FLOPs left (%)",
        "median prefill (ms)",
    )
    rows = []
    for kind, of in evaluation.figures.items():
        for way, found in of.items():
            shares = [
                100 * value
                for one in (found.accuracy, found.change, found.agreement)
                for value in (one.mean, one.low, one.high)
            ]
            left = None if found.flops_left is None else 100 * found.flops_left
            rows.append(
                (kind, way.name, found.samples, *shares, found.kl.mean, left, evaluation.prefill[way].median_ms)
            )
    return Table(columns, tuple(rows))


def evaluation_markdown(evaluation: Evaluation, calibrated: int | None = None) -> str:
    """All questions by way to answer, and accuracy by kind of question and K; as Markdown."""
    lines = [
        "| way | accuracy | change, points | agreement | mean KL | FLOPs left | prefill, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for way, found in evaluation.figures[ALL].items():
        chosen = " (calibrated)" if way == Way("withdrawn", calibrated or 0) else ""
        left = "unknown" if found.flops_left is None else f"{100 * found.flops_left:.1f} %"
        time = evaluation.prefill[way]
        lines.append(
            f"| {way.name}{chosen} | {_interval(found.accuracy)} | {'–' if way == FULL else _points(found.change)} | "
            f"{_interval(found.agreement)} | {found.kl.mean:.2g} | {left} | {time.median_ms:.1f} "
            f"({time.median_ratio:.2f} of full) |"
        )
    ways = _curve(evaluation.figures[ALL])
    if len(evaluation.figures) > 1:
        heads = ["full" if way == FULL else way.name for way in ways]
        lines += ["", f"| accuracy | questions | {' | '.join(heads)} |", f"|---|---|{'---|' * len(ways)}"]
        for kind, of in evaluation.figures.items():
            shares = " | ".join(f"{100 * of[way].accuracy.mean:.1f} %" for way in ways)
            lines.append(f"| {kind} | {of[FULL].samples} | {shares} |")
    return "\n".join(lines)


def evaluation_png(evaluation: Evaluation) -> bytes:
    """`evaluation_figure`, drawn without a browser."""
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    of = evaluation.figures[ALL]
    against_flops = _flops_known(of)
    for name, colour in (("accuracy", ACCURACY_COLOUR), ("agreement", AGREEMENT_COLOUR)):
        for kind in ("withdrawn", *MARKERS):
            ways = _of_kind(of, kind)
            if not ways:
                continue
            found: list[Estimate] = [getattr(of[way], name) for way in ways]
            axes.errorbar(
                [_place(way, of[way], against_flops, evaluation) for way in ways],
                [100 * one.mean for one in found],
                yerr=[
                    [max(0.0, 100 * (one.mean - one.low)) for one in found],
                    [max(0.0, 100 * (one.high - one.mean)) for one in found],
                ],
                fmt="o-" if kind == "withdrawn" else MARKERS[kind],
                color=colour,
                capsize=2,
                label=name if kind == "withdrawn" else f"{name}, {kind}",
            )
            if name == "agreement" and kind == "withdrawn":
                for way, one in zip(ways, found, strict=True):
                    place = (_place(way, of[way], against_flops, evaluation), 100 * one.mean)
                    axes.annotate(way.name, place, xytext=(3, 5), textcoords="offset points", fontsize=6)
    axes.set(
        xlabel="prefill FLOPs left, %" if against_flops else "withdrawal layer K",
        ylabel="share of the questions, %",
        title=f"{evaluation.data}: {evaluation.samples} questions",
    )
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="lower right")
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _flops_known(of: dict[Way, Figures]) -> bool:
    return all(found.flops_left is not None for found in of.values())


def _place(way: Way, found: Figures, against_flops: bool, evaluation: Evaluation) -> float:
    if against_flops:
        assert found.flops_left is not None
        return 100 * found.flops_left
    return _layer(way, evaluation)


def _layer(way: Way, evaluation: Evaluation) -> int:
    if way.kind == "full":
        return evaluation.layers
    return 0 if way.layer is None else way.layer


def _of_kind(of: dict[Way, Figures], kind: str) -> Sequence[Way]:
    """What is drawn alike; the full model ends the curve of withdrawal."""
    return _curve(of) if kind == "withdrawn" else [way for way in of if way.kind == kind]


def _curve(of: dict[Way, Figures]) -> Sequence[Way]:
    """Withdrawal by K, the full model last."""
    return [*(way for way in of if way.kind == "withdrawn"), FULL]


def _interval(estimate: Estimate) -> str:
    return f"{100 * estimate.mean:.1f} % ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def _points(estimate: Estimate) -> str:
    mean, low, high = (f"{100 * value:+.1f}" for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} points, {low} to {high}"
