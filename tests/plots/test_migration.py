import dataclasses

import pytest

from vtw_demo.measurements.logit_lens import Migration
from vtw_demo.plots.migration import (
    LABELLED_TOKENS,
    halfway,
    migration_figure,
    migration_reading,
    migration_table,
    rise,
)
from vtw_demo.plots.style import K_LINE, RUN_COLOURS

LAYERS = 6


def migration(lens, moved, layer=4, withdrawn=None, tokens=(" what", "?"), answer=(" red", "(end)")):
    """One whose answer's first token has these probabilities, and whose text tokens have these distances, by layer."""
    withdrawn = withdrawn or lens
    return Migration(
        tokens=tokens,
        distance=tuple((distance,) * len(tokens) for distance in moved),
        answer=answer,
        probability=tuple((probability, 0.5)[: len(answer)] for probability in lens),
        withdrawn_probability=tuple((probability, 0.25)[: len(answer)] for probability in withdrawn),
        withdrawal_layer=layer,
    )


LENS = (0.0, 0.1, 0.2, 0.6, 0.7, 0.9)
MOVED = (0.1, 0.2, 0.5, 0.7, 0.8, 0.75)
WITHDRAWN = (0.0, 0.1, 0.2, 0.6, 0.65, 0.8)
GOOD = migration(LENS, MOVED, withdrawn=WITHDRAWN)


def lines(figure):
    return {trace.name: trace for trace in figure.data if trace.type == "scatter"}


def heatmap(figure):
    (found,) = (trace for trace in figure.data if trace.type == "heatmap")
    return found


def test_probabilities_are_drawn_in_percent_by_run():
    drawn = lines(migration_figure(GOOD))
    assert {name: list(trace.y) for name, trace in drawn.items()} == {
        "“red”, full": pytest.approx([0, 10, 20, 60, 70, 90]),
        "mean of 2 tokens, full": pytest.approx([25, 30, 35, 55, 60, 70]),
        "“red”, withdrawn at layer 4": pytest.approx([0, 10, 20, 60, 65, 80]),
        "mean of 2 tokens, withdrawn at layer 4": pytest.approx([12.5, 17.5, 22.5, 42.5, 45, 52.5]),
    }
    full, full_mean, withdrawn, withdrawn_mean = drawn.values()
    assert full.line.color == full_mean.line.color == RUN_COLOURS["full"]
    assert withdrawn.line.color == withdrawn_mean.line.color == RUN_COLOURS["withdrawn"]
    assert full_mean.line.dash == withdrawn_mean.line.dash == "dot"
    for trace in drawn.values():
        assert list(trace.x) == list(range(LAYERS))
        assert "%{y:.1f} %" in trace.hovertemplate


def test_a_curve_that_lies_on_another_hides_nothing_of_it():
    drawn = lines(migration_figure(migration(LENS, MOVED, answer=("red",))))
    below, above = drawn["“red”, full"], drawn["“red”, withdrawn at layer 4"]
    assert list(drawn.values()) == [below, above]
    assert below.line.width > 2 * above.line.width
    assert below.marker.size > above.marker.size
    assert (below.line.dash, below.marker.symbol) != (above.line.dash, above.marker.symbol)


def test_an_answer_of_one_token_has_no_mean():
    drawn = lines(migration_figure(migration(LENS, MOVED, answer=("red",))))
    assert list(drawn) == ["“red”, full", "“red”, withdrawn at layer 4"]


def test_distances_are_rows_of_tokens_from_top_to_bottom():
    measured = dataclasses.replace(GOOD, distance=tuple((0.1 * layer, 0.2 * layer) for layer in range(LAYERS)))
    figure = migration_figure(measured)
    drawn = heatmap(figure)
    assert [list(row) for row in drawn.z] == [[row[token] for row in measured.distance] for token in range(2)]
    assert list(drawn.x) == list(range(LAYERS))
    axis = figure.layout.yaxis2
    assert (list(axis.tickvals), list(axis.ticktext)) == ([0, 1], ["what", "?"])
    assert axis.autorange == "reversed"
    assert axis.automargin
    assert [list(row) for row in drawn.customdata] == [["what"] * LAYERS, ["?"] * LAYERS]
    assert drawn.colorbar.title.text == "cosine distance"
    assert drawn.zmin == 0
    assert drawn.colorscale[0][1] == "#00224e"  # Cividis


@pytest.mark.parametrize(
    ("tokens", "step"), [(LABELLED_TOKENS, 1), (LABELLED_TOKENS + 1, 2), (2 * LABELLED_TOKENS, 2), (100, 7)]
)
def test_of_many_tokens_every_nth_is_labelled(tokens, step):
    names = tuple(f"t{number}" for number in range(tokens))
    axis = migration_figure(migration(LENS, MOVED, tokens=names)).layout.yaxis2
    assert list(axis.ticktext) == list(names[::step])
    assert list(axis.tickvals) == list(range(tokens))[::step]
    assert len(axis.ticktext) <= LABELLED_TOKENS


def test_tokens_are_no_markup_and_spaces_are_seen():
    figure = migration_figure(migration(LENS, MOVED, tokens=("\n", "<b>"), answer=("<i>&",)))
    assert list(figure.layout.yaxis2.ticktext) == ["␣", "&lt;b&gt;"]
    assert heatmap(figure).customdata[1][0] == "&lt;b&gt;"
    assert "“&lt;i&gt;&amp;”, full" in lines(figure)
    assert "“<i>&”" in migration_reading(migration(LENS, MOVED, answer=("<i>&",)))
    assert "“␣”" in migration_reading(migration(LENS, MOVED, answer=(" ",)))


def test_panels_share_the_layers_and_axes_say_what_they_show():
    layout = migration_figure(GOOD).layout
    assert layout.xaxis.matches == "x2"
    assert layout.xaxis2.title.text == "after decoder layer, counted from 0"
    assert list(layout.xaxis2.range) == [-0.5, LAYERS - 0.5]
    assert "probability" in layout.yaxis.title.text
    assert layout.yaxis.ticksuffix == " %"
    assert layout.yaxis.range[0] == 0
    assert layout.yaxis.range[1] >= 100
    assert layout.height == 420


def test_the_withdrawal_layer_is_marked_in_both_panels():
    shapes = migration_figure(GOOD).layout.shapes
    assert [(shape.x0, shape.x1, shape.xref) for shape in shapes] == [(3.5, 3.5, "x"), (3.5, 3.5, "x2")]
    assert {shape.line.color for shape in shapes} == {K_LINE["color"]}
    assert not migration_figure(migration(LENS, MOVED, layer=LAYERS)).layout.shapes


@pytest.mark.parametrize(
    ("lens", "layer"),
    [
        ((0.9, 0.9, 0.9), 0),
        ((0.1, 0.45, 0.9), 1),
        ((0.1, 0.44, 0.9), 2),
        ((0.9, 0.1, 0.9), 2),  # it must stay there
        ((0.0, 0.0, 0.0), 0),
    ],
)
def test_the_rise_is_where_half_of_the_final_probability_stays(lens, layer):
    assert rise(lens) == layer


@pytest.mark.parametrize(
    ("distance", "layer"),
    [
        (((0.0, 0.2), (0.4, 0.6), (0.8, 1.2)), 1),
        (((0.0, 0.2), (0.4, 0.5), (0.8, 1.2)), 2),
        (((1.0,), (0.2,), (0.4,)), 0),
        (((0.0,), (0.0,), (1e-7,)), None),
    ],
)
def test_halfway_is_of_the_mean_over_tokens(distance, layer):
    assert halfway(distance) == layer


BY_BOTH = (
    "From layer 3 on “red” has at least half of its final probability of 90 %, and by layer 2 the picture has moved "
    "the text at least half as far as it ever does"
)


@pytest.mark.parametrize(
    ("measured", "sentence"),
    [
        (GOOD, f"{BY_BOTH}. Withdrawn at layer 4, after both, its probability ends at 80 %."),
        (
            migration(LENS, MOVED, 3, (0.0, 0.1, 0.2, 0.1, 0.0, 0.0004)),
            f"{BY_BOTH}. Withdrawn at layer 3, before the answer can be read in the text, its probability ends at "
            "less than 0.1 %.",
        ),
        (migration(LENS, MOVED, LAYERS), f"{BY_BOTH}. Nothing is withdrawn."),
        (
            migration(LENS, (0.0, 0.1, 0.1, 0.2, 0.5, 0.9), 4),
            "From layer 3 on “red” has at least half of its final probability of 90 %, and by layer 4 the picture has "
            "moved the text at least half as far as it ever does. Withdrawn at layer 4, between the two, its "
            "probability ends at 90 %.",
        ),
        (
            migration((0.0, 0.1, 0.2, 0.3, 0.3, 0.9), MOVED, 5),
            "Only after the last layer does “red” have half of its final probability of 90 %, and by layer 2 the "
            "picture has moved the text at least half as far as it ever does. Withdrawn at layer 5, before the answer "
            "can be read in the text, its probability ends at 90 %.",
        ),
        (
            migration(LENS, (0.0,) * LAYERS),
            "From layer 3 on “red” has at least half of its final probability of 90 %, and the picture moves the text "
            "no further than a blank one. Withdrawn at layer 4, after that, its probability ends at 90 %.",
        ),
        (
            migration(LENS, (0.0,) * LAYERS, 2),
            "From layer 3 on “red” has at least half of its final probability of 90 %, and the picture moves the text "
            "no further than a blank one. Withdrawn at layer 2, before the answer can be read in the text, its "
            "probability ends at 90 %.",
        ),
    ],
)
def test_the_reading_says_where_k_stands(measured, sentence):
    assert migration_reading(measured) == sentence


def test_the_table_has_a_row_for_each_layer_and_token():
    table = migration_table(GOOD)
    assert table.columns == (
        "layer",
        "of",
        "token",
        "text",
        "probability, full (%)",
        "probability, withdrawn (%)",
        "cosine distance",
    )
    assert len(table.rows) == LAYERS * 4
    assert table.rows[-4:] == (
        (5, "answer", 1, " red", 90.0, 80.0, None),
        (5, "answer", 2, "(end)", 50.0, 25.0, None),
        (5, "text", 1, " what", None, None, 0.75),
        (5, "text", 2, "?", None, None, 0.75),
    )
