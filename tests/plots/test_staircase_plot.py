import dataclasses

import pytest

from vtw_demo.comparison.repeated_timing import LayerTimes
from vtw_demo.measurements.flops import LayerCost, Staircase
from vtw_demo.plots.staircase import staircase_figure, staircase_reading, staircase_table
from vtw_demo.plots.tab import SURFACES

WHOLE, LEFT = LayerCost(226, 4_000_000, 1_500), LayerCost(30, 1_000_000, 300)
STAIRS = Staircase(2, (WHOLE,) * 4, (WHOLE, WHOLE, LEFT, LEFT))
TIMES = LayerTimes(2, 5, (4.0, 4.0, 4.0, 6.0), (4.5, 4.0, 2.0, 1.5))
NOTHING = Staircase(4, (WHOLE,) * 4, (WHOLE,) * 4)
NOTHING_TIMES = LayerTimes(4, 5, TIMES.full, TIMES.full)


def stairs_of(figure):
    """By legend name, the height of each layer."""
    traces = [trace for trace in figure.data if trace.type == "scatter"]
    for trace in traces:
        assert list(trace.x) == [-0.5, 0, 1, 2, 3, 3.5]
        assert (trace.y[0], trace.y[-1]) == (trace.y[1], trace.y[-2])
        # Such a line steps half-way between two points, which is where a layer ends.
        assert trace.line.shape == "hvh"
        assert trace.fill == "tozeroy"
    return {trace.name: list(trace.y[1:-1]) for trace in traces}


@pytest.mark.parametrize(
    ("surface", "expected", "title"),
    [
        (
            "tokens",
            {"full: 904 tokens in all": [226] * 4, "withdrawn at layer 2: 512 tokens in all": [226, 226, 30, 30]},
            "tokens",
        ),
        (
            "FLOPs",
            {"full: 16 MFLOPs in all": [4] * 4, "withdrawn at layer 2: 10 MFLOPs in all": [4, 4, 1, 1]},
            "MFLOPs",
        ),
        (
            "KV cache bytes",
            {"full: 6 kB in all": [1.5] * 4, "withdrawn at layer 2: 3.6 kB in all": [1.5, 1.5, 0.3, 0.3]},
            "prompt's KV cache in kB",
        ),
    ],
)
def test_each_surface_is_drawn_in_its_unit_with_its_total(surface, expected, title):
    figure = staircase_figure(STAIRS, TIMES, surface)
    assert stairs_of(figure) == expected
    assert figure.layout.yaxis.title.text == title


def test_the_surfaces_are_all_there():
    assert SURFACES == ("tokens", "FLOPs", "KV cache bytes")


@pytest.mark.parametrize(
    ("flops", "unit", "height"),
    [(999, "FLOPs", 999), (2_000, "kFLOPs", 2), (3 * 10**9, "GFLOPs", 3), (5e12, "TFLOPs", 5)],
)
def test_the_unit_suits_the_number(flops, unit, height):
    cost = LayerCost(1, int(flops), 1)
    figure = staircase_figure(Staircase(1, (cost,), (cost,)), None, "FLOPs")
    assert figure.layout.yaxis.title.text == unit
    assert figure.data[0].y[1] == pytest.approx(height)


def test_bars_are_the_measured_times_on_the_same_layers():
    figure = staircase_figure(STAIRS, TIMES, "tokens")
    full, withdrawn = (trace for trace in figure.data if trace.type == "bar")
    assert list(full.y) == list(TIMES.full)
    assert list(withdrawn.y) == list(TIMES.withdrawn)
    assert list(full.x) == list(withdrawn.x) == [0, 1, 2, 3]
    assert figure.layout.barmode == "group"
    assert figure.layout.xaxis.matches == "x2"
    assert "ms" in figure.layout.yaxis2.title.text
    assert "layer" in figure.layout.xaxis2.title.text


def test_colours_tell_the_runs_apart_in_both_panels():
    figure = staircase_figure(STAIRS, TIMES, "tokens")
    lines = [trace.line.color for trace in figure.data if trace.type == "scatter"]
    bars = [trace.marker.color for trace in figure.data if trace.type == "bar"]
    assert lines == bars
    assert len(set(lines)) == 2


def test_the_withdrawal_layer_is_marked_in_both_panels():
    def marks(figure):
        return [(shape.x0, shape.x1, shape.xref) for shape in figure.layout.shapes]

    assert marks(staircase_figure(STAIRS, TIMES, "tokens")) == [(1.5, 1.5, "x"), (1.5, 1.5, "x2")]
    assert marks(staircase_figure(STAIRS, None, "tokens")) == [(1.5, 1.5, "x")]
    assert not marks(staircase_figure(NOTHING, NOTHING_TIMES, "tokens"))


def test_without_times_there_is_one_panel():
    figure = staircase_figure(STAIRS, None, "tokens")
    assert {trace.type for trace in figure.data} == {"scatter"}
    assert "layer" in figure.layout.xaxis.title.text
    assert "yaxis2" not in figure.layout


def test_the_reading_says_what_is_saved_and_what_was_measured():
    # FLOPs: 10 of 16 million are left; cache: 3.6 of 6 kB; time of layers 2 and 3: 3.5 of 10 ms.
    expected = (
        "From layer 2 on 30 of the prompt's 226 tokens are left. That saves 38 % of the FLOPs of all layers, the "
        "head's not counted, and 40 % of the prompt's KV cache."
    )
    assert staircase_reading(STAIRS, None) == expected
    assert staircase_reading(STAIRS, TIMES) == (
        f"{expected} In the median of {TIMES.rounds} rounds, layers 2 to 3 take 35 % of the time with all tokens."
    )


def test_the_reading_of_the_last_layer_alone():
    stairs = Staircase(3, (WHOLE,) * 4, (WHOLE, WHOLE, WHOLE, LEFT))
    sentence = staircase_reading(stairs, dataclasses.replace(TIMES, layer=3))
    assert sentence.endswith("layer 3 takes 25 % of the time with all tokens.")


def test_the_reading_says_where_nothing_is_withdrawn():
    for times in (None, NOTHING_TIMES):
        assert "nothing is withdrawn" in staircase_reading(NOTHING, times)


def test_the_table_has_a_row_for_each_run_and_layer():
    table = staircase_table(STAIRS, TIMES)
    assert table.columns == ("run", "layer", "tokens", "FLOPs", "KV cache (B)", "time (ms)")
    assert len(table.rows) == 8
    assert table.rows[0] == ("full", 0, 226, 4_000_000, 1_500, 4.0)
    assert table.rows[-1] == ("withdrawn", 3, 30, 1_000_000, 300, 1.5)
    assert staircase_table(STAIRS, None).rows[-1] == ("withdrawn", 3, 30, 1_000_000, 300, None)
