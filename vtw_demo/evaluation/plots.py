"""How much of a model's quality withdrawal keeps: accuracy and agreement, against the FLOPs left and by K."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from vtw_demo.evaluation.evaluation import ALL, Evaluation, Figures
from vtw_demo.evaluation.metrics import Estimate
from vtw_demo.evaluation.variants import FULL, Variant
from vtw_demo.formats import filled, sentences
from vtw_demo.plots.style import RUN_COLOURS, TRACES, add_line, mark_k, styled
from vtw_demo.plots.tab import Table

ACCURACY_COLOUR, AGREEMENT_COLOUR = RUN_COLOURS["withdrawn"], "#0072B2"
SYMBOLS = {
    "renumbered": "diamond",
    "blind": "square",
    "fastv": "triangle-up",
    "pyramid_drop": "triangle-down",
    "random_tokens": "x",
    "uniform_grid": "cross",
    "auto": "star",
    "own": "hourglass",
}
KIND_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8A8F98", "#B8A800", "#5D3A9B")


def evaluation_figure(evaluation: Evaluation) -> go.Figure:
    """Accuracy and agreement with 95 % intervals, against the FLOPs left; against K where costs aren't known."""
    figure = go.Figure()
    of = evaluation.figures[ALL]
    against_flops = all(found.flops_left is not None for found in of.values())
    for name, colour in (("accuracy", ACCURACY_COLOUR), ("agreement", AGREEMENT_COLOUR)):
        for kind in ("withdrawn", *SYMBOLS):
            # The full model ends the curve of withdrawal.
            variants = _curve(of) if kind == "withdrawn" else [variant for variant in of if variant.kind == kind]
            if not variants:
                continue
            found: list[Estimate] = [getattr(of[variant], name) for variant in variants]
            left, layers = [100 * (of[variant].flops_left or 0) for variant in variants], _layers(variants, evaluation)
            figure.add_scatter(
                x=left if against_flops else layers,
                y=[100 * one.mean for one in found],
                error_y_array=[100 * (one.high - one.mean) for one in found],
                error_y_arrayminus=[100 * (one.mean - one.low) for one in found],
                error_y=TRACES["interval"],
                text=[variant.name for variant in variants],
                mode="lines+markers" if kind == "withdrawn" else "markers",
                line={"color": colour},
                marker={"color": colour, "symbol": SYMBOLS.get(kind, "circle"), "size": 8},
                name=name if kind == "withdrawn" else f"{name}, {kind}",
                hovertemplate=f"%{{text}}: {name} %{{y:.1f}} %<extra></extra>",
            )
    title = f"{evaluation.data}: {evaluation.samples} questions"
    of_x = "prefill FLOPs left" if against_flops else "withdrawal layer K"
    return _titled(figure, title, of_x, "share of the questions").update_xaxes(ticksuffix=" %" if against_flops else "")


def kinds_figure(evaluation: Evaluation, calibrated: int | None = None) -> go.Figure:
    """Accuracy by K, a line for each kind of question; `calibrated` is marked."""
    figure = go.Figure()
    for number, (kind, of) in enumerate(evaluation.figures.items()):
        variants = _curve(of)
        colour, width = ("#555", 4) if kind == ALL else (KIND_COLOURS[number % len(KIND_COLOURS)], 2)
        accuracies = [100 * of[variant].accuracy.mean for variant in variants]
        said, name = f"{kind}, K = %{{x}}: %{{y:.1f}} %<extra></extra>", f"{kind} ({of[FULL].samples})"
        layers = _layers(variants, evaluation)
        add_line(figure, layers, accuracies, name, {"color": colour, "width": width}, said)
    if calibrated is not None:
        mark_k(figure, calibrated)
    title = f"{evaluation.data}: accuracy by kind of question"
    return _titled(figure, title, "withdrawal layer K; the last is the full model", "accuracy")


def _titled(figure: go.Figure, title: str, of_x: str, of_y: str) -> go.Figure:
    figure.update_xaxes(title=of_x).update_yaxes(title=of_y, ticksuffix=" %")
    return styled(figure, height=420, title={"text": title, "font": {"size": 14}}, legend_y=-0.2)


def evaluation_reading(evaluation: Evaluation, layer: int) -> str:
    """What withdrawal at `layer` keeps and saves, in one sentence."""
    of = evaluation.figures[ALL]
    file = Path(__file__).with_name("reading.txt")
    return sentences(file, data=evaluation, layer=layer, found=of[Variant("withdrawn", layer)], full=of[FULL])


def evaluation_table(evaluation: Evaluation) -> Table:
    rows: list[dict[str, Any]] = []
    for kind, of in evaluation.figures.items():
        for variant, found in of.items():
            row: dict[str, Any] = {"kind": kind, "way": variant.name, "questions": found.samples}
            for name, short, unit, one in (
                ("accuracy", "accuracy", "%", found.accuracy),
                ("change of accuracy", "change", "points", found.change),
                ("agreement", "agreement", "%", found.agreement),
            ):
                row[f"{name} ({unit})"] = 100 * one.mean
                row |= {f"{short}, low ({unit})": 100 * one.low, f"{short}, high ({unit})": 100 * one.high}
            row["mean KL (nats)"] = found.kl.mean
            row["prefill FLOPs left (%)"] = None if found.flops_left is None else 100 * found.flops_left
            row["median prefill (ms)"] = None if variant.kind == "own" else evaluation.prefill[variant].median_ms
            row |= {"mean K": found.mean_layer, "K, standard deviation": found.layer_deviation}
            rows.append(row)
    return Table(tuple(rows[0]), tuple(tuple(row.values()) for row in rows))


def evaluation_markdown(evaluation: Evaluation, calibrated: int | None = None) -> str:
    """All questions by variant, and accuracy by kind of question and K; as Markdown."""
    every, file = evaluation.figures[ALL], Path(__file__).with_name("tables.txt")
    return filled(file, evaluation=evaluation, every=every, curve=_curve(every), calibrated=calibrated)


def _layers(variants: Sequence[Variant], evaluation: Evaluation) -> list[int]:
    """Where they stand on an axis of K."""
    of = evaluation.figures[ALL]
    return [evaluation.layers if way == FULL else way.layer or round(of[way].mean_layer or 0) for way in variants]


def _curve(of: dict[Variant, Figures]) -> Sequence[Variant]:
    """Withdrawal by K, the full model last."""
    return [*(variant for variant in of if variant.kind == "withdrawn"), FULL]
