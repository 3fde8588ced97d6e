"""Where attention goes: attention mass by layer and segment, and what it carries."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vtw_demo.errors import UserError
from vtw_demo.formats import percent
from vtw_demo.measurements.attention import AttentionMap, AttentionMass, Shares, mean_shares
from vtw_demo.measurements.sinks import MASSIVE
from vtw_demo.plots.published_attention import PublishedLine
from vtw_demo.plots.style import LAYOUTS, SEGMENT_COLOURS, TRACES, add_line, mark_layer, styled
from vtw_demo.plots.tab import (
    ANSWER_MEAN,
    ATTENTION,
    CONTRIBUTION,
    COSINE,
    LAST_PROMPT,
    AttentionQuery,
    Cell,
    Quantity,
    Table,
)
from vtw_demo.plots.templates import reading
from vtw_demo.withdrawal.segments import Segment

LOOKING = 0.2  # the share of its attention from which on a layer is said to look at something


def shares_by_layer(
    mass: AttentionMass, query: AttentionQuery, quantity: Quantity = ATTENTION
) -> tuple[Shares | None, ...]:
    """(layers, segments) of the chosen query and quantity, a cosine in place of segments; None for layers that don't
    attend. The answer's mean is that of its tokens' shares."""
    last_prompt, *answer = {
        ATTENTION: (mass.last_prompt, *mass.answer),
        CONTRIBUTION: mass.contribution,
        COSINE: tuple(tuple(None if one is None else (one,) for one in row) for row in mass.cosine),
    }[quantity]
    if isinstance(query, int):
        if not 0 <= query < len(answer):
            raise UserError(f"The answer has {len(answer)} tokens; there is no token {query + 1}.")
        return answer[query]
    return mean_shares(answer) if query == ANSWER_MEAN else last_prompt


def attention_figure(
    full: AttentionMass,
    withdrawn: AttentionMass,
    query: AttentionQuery,
    quantity: Quantity = ATTENTION,
    published: Sequence[PublishedLine] = (),
) -> go.Figure:
    """Both runs side by side on the same axes, K marked: a bar a layer, its segments stacked to 100 %; or a line, the
    cosine of the attention's output with and without the visual tokens. `published` lines are of attention, in the
    full run."""
    layer = withdrawn.withdrawal_layer
    assert layer is not None
    titles = ("full", f"withdrawn at layer {layer}")
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=titles)
    figure.update_annotations(font={"size": 13})
    layers = list(range(full.layers))
    for column, mass in enumerate((full, withdrawn), start=1):
        shares = shares_by_layer(mass, query, quantity)
        if quantity == COSINE:
            cosines, look = (
                [None if one is None else one[0] for one in shares],
                {"color": SEGMENT_COLOURS[Segment.IMAGE]},
            )
            said = "layer %{x}: cosine %{y:.4f}<extra></extra>"
            add_line(figure, layers, cosines, COSINE, look, said, showlegend=False, row=1, col=column)
            continue
        for index, name in enumerate(mass.segments):
            figure.add_bar(
                x=layers,
                y=[None if of_layer is None else 100 * of_layer[index] for of_layer in shares],
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                marker={"color": SEGMENT_COLOURS[Segment(name)], "line": {"width": 0}},
                hovertemplate=f"layer %{{x}}, {name}: %{{y:.1f}} %<extra></extra>",
                row=1,
                col=column,
            )
    for line in published if quantity == ATTENTION else ():
        points = {"x": line.layers(full.layers), "y": line.percents, "name": line.name}
        colour = {"color": SEGMENT_COLOURS[line.segment]}
        figure.add_scatter(**points | {"text": line.source, "line": colour} | TRACES["published"], row=1, col=1)
    mark_layer(figure, layer, full.layers, (1, 1), (1, 2))
    return styled(figure, "attention", **LAYOUTS.get(quantity, {}))


def attention_reading(
    full: AttentionMass,
    withdrawn: AttentionMass,
    query: AttentionQuery,
    quantity: Quantity = ATTENTION,
    published: Sequence[PublishedLine] = (),
) -> str:
    """What the picture gets before K and after it, and how the first token's share changes without it; or where the
    visual tokens move the attention's output most. Whether the first token is a sink by its activations, and who
    published the lines."""

    def share(mass: AttentionMass, segment: str, first: int, last: int | None = None) -> str:
        index = mass.segments.index(segment)
        by_layer = shares_by_layer(mass, query, quantity)[first:last]
        shares = [of_layer[index] for of_layer in by_layer if of_layer is not None]
        return percent(fmean(shares)) if shares else "none"

    asker = "the last prompt token" if query == LAST_PROMPT else "the answer's tokens"
    if isinstance(query, int):
        asker = f"the answer's token {query + 1}"
    masses = {"full": full, "withdrawn": withdrawn, "layer": withdrawn.withdrawal_layer}
    told: dict[str, Any] = {"asker": asker, "sinks": full.sinks, "massive": MASSIVE, "gaps": why_gaps(full)}
    if quantity == COSINE:
        by_layer = shares_by_layer(full, query, COSINE)
        cosines = {layer: one[0] for layer, one in enumerate(by_layer) if one is not None}
        return reading("cosine", **masses, **told, cosines=cosines)
    told |= {"is_weighted": quantity == CONTRIBUTION, "published": published}
    return reading("attention", **masses, **told, share=share)


def why_gaps(measured: AttentionMass | AttentionMap) -> str:
    """The sentence on layers that a plot leaves out; empty where there are none."""
    if not measured.layers_without_attention:
        return ""
    return f"{measured.layers_without_attention} of the {measured.layers} layers don't attend, and are left out."


def attention_table(full: AttentionMass, withdrawn: AttentionMass, query: AttentionQuery, *_: Any) -> Table:
    """All quantities, whichever is shown."""
    rows: list[tuple[Cell, ...]] = []
    for run, mass in (("full", full), ("withdrawn", withdrawn)):
        of_all = (shares_by_layer(mass, query, quantity) for quantity in (ATTENTION, CONTRIBUTION, COSINE))
        for layer, (*shares, cosine) in enumerate(zip(*of_all, strict=True)):
            cells = (None if one is None else 100 * one for of in shares for one in of or (None,) * len(mass.segments))
            rows.append((run, layer, *cells, cosine and cosine[0]))
    columns = (f"{name}{of} (%)" for of in ("", ", × value norm") for name in full.segments)
    return Table(("run", "layer", *columns, COSINE), tuple(rows))


def where_it_looks(shares: Sequence[Shares | None]) -> str:
    """Of a model, from its layers' mean shares: which layers look at the picture, and which rest on the first token."""
    first, image = (
        [0.0 if of_layer is None else of_layer[segment.number] for of_layer in shares]
        for segment in (Segment.FIRST_TOKEN, Segment.IMAGE)
    )
    looking, resting = ([n for n, share in enumerate(of) if share >= LOOKING] for of in (image, first))
    others = max((share for share in image if share < LOOKING), default=0.0)
    return reading("looks", looking=looking, resting=resting, others=others, much=LOOKING)
