"""Where attention goes: attention mass by layer and segment."""

from collections.abc import Sequence
from statistics import fmean

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vtw_demo.comparison.analysis import Part
from vtw_demo.errors import UserError
from vtw_demo.formats import percent
from vtw_demo.measurements.attention import AttentionMap, AttentionMass, Shares
from vtw_demo.plots.style import SEGMENT_COLOURS, mark_layer, styled
from vtw_demo.plots.tab import ANSWER_MEAN, LAST_PROMPT, AttentionQuery, Tab
from vtw_demo.plots.table import Cell, Table
from vtw_demo.withdrawal.segments import Segment

# From this share of its attention on, a layer is said to look at something.
LOOKING = 0.2


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
    layer = withdrawn.withdrawal_layer
    assert layer is not None
    asker = _asker(query)

    def share(mass: AttentionMass, segment: Segment, first: int, last: int | None = None) -> str:
        index = mass.segments.index(segment)
        shares = [of_layer[index] for of_layer in shares_by_layer(mass, query)[first:last] if of_layer is not None]
        return percent(fmean(shares)) if shares else "none"

    if layer == full.layers:
        picture, sink = (share(full, segment, 0) for segment in (Segment.IMAGE, Segment.FIRST_TOKEN))
        said = f"Over all layers the picture gets {picture} of the attention of {asker}, and the first token {sink}."
        return f"{said} {why_gaps(full)}".strip()
    early, late = share(full, Segment.IMAGE, 0, layer), share(full, Segment.IMAGE, layer)
    before, after = (share(mass, Segment.FIRST_TOKEN, layer) for mass in (full, withdrawn))
    said = (
        f"The picture gets {early} of the attention of {asker} in {_layers(0, layer - 1)} and {late} in "
        f"{_layers(layer, full.layers - 1)}. Withdrawn at layer {layer}, it gets none from there on, and the first "
        f"token gets {after} there instead of {before}."
    )
    return f"{said} {why_gaps(full)}".strip()


def why_gaps(measured: AttentionMass | AttentionMap) -> str:
    """The sentence on layers that a plot leaves out; empty where there are none."""
    if not measured.layers_without_attention:
        return ""
    return f"{measured.layers_without_attention} of the {measured.layers} layers don't attend, and are left out."


def attention_table(full: AttentionMass, withdrawn: AttentionMass, query: AttentionQuery) -> Table:
    """A row for each run and layer, a column for each segment."""
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
    much = f"{percent(LOOKING)} or more"
    return (
        f"Of the attention of the last prompt token, {much} are on the picture in {_named(looking)}, at most "
        f"{percent(others)} in the others; and {much} on the first token in {_named(resting)}."
    )


def _named(layers: Sequence[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}" if layers else "no layer"


def _asker(query: AttentionQuery) -> str:
    if isinstance(query, int):
        return f"the answer's token {query + 1}"
    return "the last prompt token" if query == LAST_PROMPT else "the answer's tokens"


def _layers(first: int, last: int) -> str:
    return f"layer {first}" if first == last else f"layers {first} to {last}"


TAB = Tab(
    "attention",
    "Attention",
    "Where attention goes",
    attention_figure,
    attention_reading,
    attention_table,
    lambda view: (Part("attention", "full"), Part("attention", "withdrawn")),
    lambda analysis, view: (view.attention_query,),
)
