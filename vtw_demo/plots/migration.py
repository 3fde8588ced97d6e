"""How the picture's content moves into the text: the logit lens, and how far the text's states have moved."""

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vtw_demo.comparison.compare import RunName
from vtw_demo.formats import count
from vtw_demo.measurements.logit_lens import Migration, Rows
from vtw_demo.plots.style import RUN_COLOURS, TRACES, add_line, mark_layer, shown_token, styled
from vtw_demo.plots.tab import Cell, Table
from vtw_demo.plots.templates import reading

LABELLED_TOKENS = 16  # have room below each other
# The curves often lie on each other: the full run's is seen on both sides of the other, and between its dashes.
LOOKS: dict[RunName, tuple[dict[str, Any], dict[str, Any]]] = {
    "full": ({"color": RUN_COLOURS["full"], "width": 6}, {"symbol": "circle", "size": 13}),
    "withdrawn": ({"color": RUN_COLOURS["withdrawn"], "width": 2, "dash": "dash"}, {"symbol": "diamond", "size": 7}),
}
FLOOR = 1e-5  # distances below it are of rounding


def migration_figure(migration: Migration) -> go.Figure:
    """Above, how likely the answer already is after each layer, its first token and the mean over all; below, how far
    each text token has moved, of many every n-th labelled. K is marked."""
    upper, gap = 0.4, 0.06
    figure = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=gap, row_heights=[upper, 1 - upper])
    layers = list(range(migration.layers))
    runs: dict[RunName, tuple[str, Rows]] = {
        "full": ("full", migration.probability),
        "withdrawn": (f"withdrawn at layer {migration.withdrawal_layer}", migration.withdrawn_probability),
    }
    for run, (title, rows) in runs.items():
        said = "after layer %{x}: %{y:.1f} %<extra>%{fullData.name}</extra>"
        name = f"“{escape(shown_token(migration.answer[0]), quote=False)}”, {title}"
        look, marker = LOOKS[run]
        add_line(figure, layers, [100 * row[0] for row in rows], name, look, said, marker=marker, row=1, col=1)
        if len(migration.answer) > 1:
            means = [100 * sum(row) / len(row) for row in rows]
            name = f"mean of {count(len(migration.answer), 'token')}, {title}"
            add_line(figure, layers, means, name, {**look, "dash": "dot"}, said, mode="lines", row=1, col=1)
    places = list(range(len(migration.tokens)))
    labels = [escape(shown_token(token), quote=False) for token in migration.tokens]
    step = -(-len(places) // LABELLED_TOKENS)
    figure.add_heatmap(
        x=layers,
        y=places,
        z=[[of_layer[place] for of_layer in migration.distance] for place in places],
        customdata=[[label] * migration.layers for label in labels],
        colorbar_len=(1 - upper) * (1 - gap),
        **TRACES["distance"],
        row=2,
        col=1,
    )
    mark_layer(figure, migration.withdrawal_layer, migration.layers, (1, 1), (2, 1))
    return styled(figure, "migration", yaxis2_tickvals=places[::step], yaxis2_ticktext=labels[::step])


def migration_reading(migration: Migration) -> str:
    """From which layer on the answer is in the text, by which one the text has moved, and whether K comes after."""
    lens = [row[0] for row in migration.probability]
    return reading(
        "migration",
        layer=migration.withdrawal_layer,
        layers=migration.layers,
        answer=shown_token(migration.answer[0]),
        risen=rise(lens),
        moved=halfway(migration.distance),
        final=lens[-1],
        withdrawn=migration.withdrawn_probability[-1][0],
    )


def rise(lens: Sequence[float]) -> int:
    """The first layer from which on a token has at least half of its final probability."""
    below = [layer for layer, probability in enumerate(lens) if probability < lens[-1] / 2]
    return max(below, default=-1) + 1


def halfway(distance: Rows) -> int | None:
    """The first layer by which the text has moved at least half as far as ever; None where it never moves."""
    means = [sum(row) / len(row) for row in distance]
    if max(means) < FLOOR:
        return None
    return next(layer for layer, mean in enumerate(means) if mean >= max(means) / 2)


def migration_table(migration: Migration) -> Table:
    """A row for each layer and token: the answer's with probabilities, then the text's with distances."""
    rows: list[tuple[Cell, ...]] = []
    for layer in range(migration.layers):
        for number, token in enumerate(migration.answer):
            lens = [100 * of[layer][number] for of in (migration.probability, migration.withdrawn_probability)]
            rows.append((layer, "answer", number + 1, token, *lens, None))
        for number, token in enumerate(migration.tokens):
            rows.append((layer, "text", number + 1, token, None, None, migration.distance[layer][number]))
    columns = ("layer", "of", "token", "text", "probability, full (%)", "probability, withdrawn (%)", "cosine distance")
    return Table(columns, tuple(rows))
