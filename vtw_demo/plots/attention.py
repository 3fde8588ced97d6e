"""Where attention goes: attention mass by layer and segment."""

from collections.abc import Sequence
from statistics import fmean

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vtw_demo.errors import UserError
from vtw_demo.formats import percent
from vtw_demo.measurements.attention import AttentionMap, AttentionMass, Shares
from vtw_demo.plots.style import SEGMENT_COLOURS, mark_layer, styled
from vtw_demo.plots.tab import ANSWER_MEAN, LAST_PROMPT, AttentionQuery, Cell, Table
from vtw_demo.plots.templates import reading
from vtw_demo.withdrawal.segments import Segment

LOOKING = 0.2  # the share of its attention from which on a layer is said to look at something


def shares_by_layer(mass: AttentionMass, query: AttentionQuery) -> tuple[Shares | None, ...]:
    """(layers, segments) of the chosen query; None for layers that don't attend."""
    if isinstance(query, int):
        if not 0 <= query < len(mass.answer):
            raise UserError(f"The answer has {len(mass.answer)} tokens; there is no token {query + 1}.")
        return mass.answer[query]
    return mass.answer_mean if query == ANSWER_MEAN else mass.last_prompt


def attention_figure(full: AttentionMass, withdrawn: AttentionMass, query: AttentionQuery) -> go.Figure:
    """Both runs side by side on the same axes: a bar a layer, its segments stacked to 100 %, K marked."""
    layer = withdrawn.withdrawal_layer
    assert layer is not None
    titles = ("full", f"withdrawn at layer {layer}")
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=titles)
    figure.update_annotations(font={"size": 13})
    layers = list(range(full.layers))
    for column, mass in enumerate((full, withdrawn), start=1):
        shares = shares_by_layer(mass, query)
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
    mark_layer(figure, layer, full.layers, (1, 1), (1, 2))
    return styled(figure, "attention")


def attention_reading(full: AttentionMass, withdrawn: AttentionMass, query: AttentionQuery) -> str:
    """What the picture gets before K and after it, and how the first token's share changes without it."""

    def share(mass: AttentionMass, segment: str, first: int, last: int | None = None) -> str:
        index = mass.segments.index(segment)
        shares = [of_layer[index] for of_layer in shares_by_layer(mass, query)[first:last] if of_layer is not None]
        return percent(fmean(shares)) if shares else "none"

    asker = "the last prompt token" if query == LAST_PROMPT else "the answer's tokens"
    if isinstance(query, int):
        asker = f"the answer's token {query + 1}"
    masses = {"full": full, "withdrawn": withdrawn, "layer": withdrawn.withdrawal_layer}
    return reading("attention", **masses, share=share, asker=asker, gaps=why_gaps(full))


def why_gaps(measured: AttentionMass | AttentionMap) -> str:
    """The sentence on layers that a plot leaves out; empty where there are none."""
    if not measured.layers_without_attention:
        return ""
    return f"{measured.layers_without_attention} of the {measured.layers} layers don't attend, and are left out."


def attention_table(full: AttentionMass, withdrawn: AttentionMass, query: AttentionQuery) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (run, layer, *((None,) * len(full.segments) if shares is None else (100 * share for share in shares)))
        for run, mass in (("full", full), ("withdrawn", withdrawn))
        for layer, shares in enumerate(shares_by_layer(mass, query))
    ]
    return Table(("run", "layer", *(f"{name} (%)" for name in full.segments)), tuple(rows))


def where_it_looks(shares: Sequence[Shares | None]) -> str:
    """Of a model, from its layers' mean shares: which layers look at the picture, and which rest on the first token."""
    first, image = (
        [0.0 if of_layer is None else of_layer[segment.number] for of_layer in shares]
        for segment in (Segment.FIRST_TOKEN, Segment.IMAGE)
    )
    looking, resting = ([n for n, share in enumerate(of) if share >= LOOKING] for of in (image, first))
    others = max((share for share in image if share < LOOKING), default=0.0)
    return reading("looks", looking=looking, resting=resting, others=others, much=LOOKING)
