"""Which tokens of an answer still need the picture, in which layers: the divergence at each token and K."""

import plotly.graph_objects as go

from vtw_demo.measurements.query_sweep import QuerySweep
from vtw_demo.plots.divergence import exponent
from vtw_demo.plots.style import TRACES, layer_ticks, shown_token, styled
from vtw_demo.plots.tab import Table
from vtw_demo.plots.templates import reading


def words_figure(query: QuerySweep) -> go.Figure:
    """The divergence at each token of the full model's answer (columns), withdrawn at each K (rows)."""
    columns = list(range(len(query.answer)))
    exponents = [[exponent(kl) for kl in row] for row in query.answer_kl]
    said = [
        [[token, choice, kl] for token, choice, kl in zip(query.answer, choices, row, strict=True)]
        for choices, row in zip(query.answer_choices, query.answer_kl, strict=True)
    ]
    ticks = list(range(round(exponent(0)), 2))
    figure = go.Figure(
        go.Heatmap(
            x=columns,
            y=query.layers,
            z=exponents,
            customdata=said,
            zmin=ticks[0],
            zmax=ticks[-1],
            colorbar_tickvals=ticks,
            colorbar_ticktext=[f"10<sup>{tick}</sup>" if tick else "1" for tick in ticks],
            **TRACES["divergence of a word"],
        )
    )
    changed = [
        (column, layer)
        for layer, choices in zip(query.layers, query.answer_choices, strict=True)
        for column, (token, choice) in enumerate(zip(query.answer, choices, strict=True))
        if token != choice
    ]
    if changed:
        figure.add_scatter(
            x=[column for column, _ in changed],
            y=[layer for _, layer in changed],
            **TRACES["another token"],
        )
    return styled(
        figure,
        "words",
        height=max(280, 120 + 18 * len(query.layers)),
        showlegend=bool(changed),
        xaxis_tickvals=columns,
        xaxis_ticktext=[shown_token(token) for token in query.answer],
        xaxis_tickangle=-40 if len(columns) > 12 else 0,
        yaxis_dtick=layer_ticks(len(query.layers)),
    )


def words_reading(query: QuerySweep, threshold: float) -> str:
    needed = []
    for column, token in enumerate(query.answer):
        above = [k for k, row in zip(query.layers, query.answer_kl, strict=True) if row[column] > threshold]
        needed.append((max(above, default=0) + 1, query.answer_kl[-1][column], column, token))
    last, _, column, token = max(needed)
    named = {"number": column + 1, "token": shown_token(token)}
    return reading("words", last=last, layers=query.layers, threshold=threshold, **named)


def words_table(query: QuerySweep) -> Table:
    rows = [
        (k, number, token, choice, kl)
        for k, choices, divergences in zip(query.layers, query.answer_choices, query.answer_kl, strict=True)
        for number, (token, choice, kl) in enumerate(zip(query.answer, choices, divergences, strict=True), start=1)
    ]
    return Table(("K", "token", "full model's token", "withdrawn model's token", "KL (nats)"), tuple(rows))
