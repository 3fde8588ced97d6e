"""How much of a model's quality withdrawal keeps: accuracy and agreement, against the FLOPs left and by K."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from vtw_demo.evaluation.evaluation import ALL, Evaluation, Figures
from vtw_demo.evaluation.metrics import Estimate
from vtw_demo.evaluation.variants import FULL, Variant
from vtw_demo.formats import percent
from vtw_demo.plots.style import K_LINE, RUN_COLOURS, styled
from vtw_demo.plots.table import Table

ACCURACY_COLOUR, AGREEMENT_COLOUR = RUN_COLOURS["withdrawn"], "#0072B2"
SYMBOLS = {"random": "x", "renumbered": "diamond", "blind": "square", "fastv": "triangle-up"}
KIND_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8A8F98", "#B8A800", "#5D3A9B")


def evaluation_figure(evaluation: Evaluation) -> go.Figure:
    """Accuracy and agreement with 95 % intervals, against the FLOPs left; against K where costs aren't known."""
    figure = go.Figure()
    of = evaluation.figures[ALL]
    against_flops = _flops_known(of)
    for name, colour in (("accuracy", ACCURACY_COLOUR), ("agreement", AGREEMENT_COLOUR)):
        for kind in ("withdrawn", *SYMBOLS):
            variants = _of_kind(of, kind)
            if not variants:
                continue
            found: list[Estimate] = [getattr(of[variant], name) for variant in variants]
            figure.add_scatter(
                x=[_place(variant, of[variant], against_flops, evaluation) for variant in variants],
                y=[100 * one.mean for one in found],
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [100 * (one.high - one.mean) for one in found],
                    "arrayminus": [100 * (one.mean - one.low) for one in found],
                    "thickness": 1,
                    "width": 3,
                },
                text=[variant.name for variant in variants],
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
        variants = _curve(of)
        figure.add_scatter(
            x=[_layer(variant, evaluation) for variant in variants],
            y=[100 * of[variant].accuracy.mean for variant in variants],
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
    found, full = of[Variant("withdrawn", layer)], of[FULL]
    flops = "" if found.flops_left is None else f" with {percent(found.flops_left)} of the prefill's FLOPs"
    return (
        f"On {evaluation.data} ({evaluation.samples} questions), withdrawal at K = {layer} is right in "
        f"{100 * found.accuracy.mean:.1f} % and the full model in {100 * full.accuracy.mean:.1f} % "
        f"({_points(found.change)}), and {100 * found.agreement.mean:.1f} % of the answers are the full "
        f"model's{flops}."
    )


def evaluation_table(evaluation: Evaluation) -> Table:
    """A row for each kind of question and variant."""
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
        for variant, found in of.items():
            shares = [
                100 * value
                for one in (found.accuracy, found.change, found.agreement)
                for value in (one.mean, one.low, one.high)
            ]
            left = None if found.flops_left is None else 100 * found.flops_left
            rows.append(
                (kind, variant.name, found.samples, *shares, found.kl.mean, left, evaluation.prefill[variant].median_ms)
            )
    return Table(columns, tuple(rows))


def evaluation_markdown(evaluation: Evaluation, calibrated: int | None = None) -> str:
    """All questions by variant, and accuracy by kind of question and K; as Markdown."""
    lines = [
        "| way | accuracy | change, points | agreement | mean KL | FLOPs left | prefill, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for variant, found in evaluation.figures[ALL].items():
        chosen = " (calibrated)" if variant == Variant("withdrawn", calibrated or 0) else ""
        left = "unknown" if found.flops_left is None else f"{100 * found.flops_left:.1f} %"
        time = evaluation.prefill[variant]
        change = "–" if variant == FULL else _points(found.change)
        lines.append(
            f"| {variant.name}{chosen} | {_interval(found.accuracy)} | {change} | "
            f"{_interval(found.agreement)} | {found.kl.mean:.2g} | {left} | {time.median_ms:.1f} "
            f"({time.median_ratio:.2f} of full) |"
        )
    variants = _curve(evaluation.figures[ALL])
    if len(evaluation.figures) > 1:
        heads = ["full" if variant == FULL else variant.name for variant in variants]
        lines += ["", f"| accuracy | questions | {' | '.join(heads)} |", f"|---|---|{'---|' * len(variants)}"]
        for kind, of in evaluation.figures.items():
            shares = " | ".join(f"{100 * of[variant].accuracy.mean:.1f} %" for variant in variants)
            lines.append(f"| {kind} | {of[FULL].samples} | {shares} |")
    return "\n".join(lines)


def _flops_known(of: dict[Variant, Figures]) -> bool:
    return all(found.flops_left is not None for found in of.values())


def _place(variant: Variant, found: Figures, against_flops: bool, evaluation: Evaluation) -> float:
    if against_flops:
        assert found.flops_left is not None
        return 100 * found.flops_left
    return _layer(variant, evaluation)


def _layer(variant: Variant, evaluation: Evaluation) -> int:
    if variant.kind == "full":
        return evaluation.layers
    return 0 if variant.layer is None else variant.layer


def _of_kind(of: dict[Variant, Figures], kind: str) -> Sequence[Variant]:
    """What is drawn alike; the full model ends the curve of withdrawal."""
    return _curve(of) if kind == "withdrawn" else [variant for variant in of if variant.kind == kind]


def _curve(of: dict[Variant, Figures]) -> Sequence[Variant]:
    """Withdrawal by K, the full model last."""
    return [*(variant for variant in of if variant.kind == "withdrawn"), FULL]


def _interval(estimate: Estimate) -> str:
    return f"{100 * estimate.mean:.1f} % ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def _points(estimate: Estimate) -> str:
    mean, low, high = (f"{100 * value:+.1f}" for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} points, {low} to {high}"
