import dataclasses

import pytest

from vtw_demo.measurements.attention import AttentionMass
from vtw_demo.plots.overlay import Overlaid, overlay_figure, overlay_reading

SEGMENTS = ("image", "question")


def mass(shares, withdrawal_layer=None):
    return AttentionMass(SEGMENTS, tuple((share, 1 - share) for share in shares), (), 196, withdrawal_layer)


EARLY = Overlaid("early", 2, mass((0.8, 0.4, 0.2, 0.1)), mass((0.8, 0.4, 0, 0), 2), (0.5, 0.02, 0.0))
LATE = Overlaid(
    "late <b>", 1, mass((0.1, 0.2, 0.3, 0.6, 0.6, 0.5)), mass((0.1, 0, 0, 0, 0, 0), 1), (2.0, 1.0, 0.5, 0.2, 0.1)
)


def lines(figure, axis):
    return [trace for trace in figure.data if trace.xaxis == axis and "lines" in trace.mode]


def test_the_pictures_share_by_layer_of_both_runs_of_both():
    figure = overlay_figure(EARLY, LATE)
    shares = lines(figure, "x")
    assert [list(trace.y) for trace in shares] == [
        pytest.approx([80, 40, 20, 10]),
        pytest.approx([80, 40, 0, 0]),
        pytest.approx([10, 20, 30, 60, 60, 50]),
        pytest.approx([10, 0, 0, 0, 0, 0]),
    ]
    assert [list(trace.x) for trace in shares] == [list(range(4))] * 2 + [list(range(6))] * 2
    assert [trace.line.dash for trace in shares] == ["solid", "dash"] * 2
    assert [trace.name for trace in shares] == [
        "early, full",
        "early, withdrawn at 2",
        "late &lt;b&gt;, full",
        "late &lt;b&gt;, withdrawn at 1",
    ]


def test_each_comparison_has_a_colour_and_a_symbol():
    figure = overlay_figure(EARLY, LATE)
    pairs = lines(figure, "x")[::2] + lines(figure, "x")[1::2] + lines(figure, "x2")
    looks = [(trace.line.color, trace.marker.symbol) for trace in pairs]
    assert looks[:2] * 3 == looks
    assert looks[0][0] != looks[1][0]
    assert looks[0][1] != looks[1][1]


def test_the_divergence_by_k_with_both_k_marked():
    figure = overlay_figure(EARLY, LATE)
    first, second = lines(figure, "x2")
    assert list(first.x) == [1, 2, 3]
    assert list(first.customdata) == [0.5, 0.02, 0.0]
    assert min(first.y) > 0  # a logarithmic axis has no 0
    assert list(second.y) == [2.0, 1.0, 0.5, 0.2, 0.1]
    assert figure.layout.yaxis2.type == "log"
    marks = [(trace.x[0], trace.y[0], trace.text) for trace in figure.data if trace.mode == "markers+text"]
    assert marks == [(2, 0.02, "K = 2"), (1, 2.0, "K = 1")]


def at_the_end(overlaid):
    return dataclasses.replace(
        overlaid,
        layer=overlaid.layers,
        mass_withdrawn=dataclasses.replace(overlaid.mass_full, withdrawal_layer=overlaid.layers),
    )


def test_at_the_last_layer_there_is_no_k_to_mark():
    figure = overlay_figure(at_the_end(EARLY), LATE)
    assert [trace.text for trace in figure.data if trace.mode == "markers+text"] == ["K = 1"]


def test_axes_say_what_they_show():
    layout = overlay_figure(EARLY, LATE).layout
    assert "decoder layer" in layout.xaxis.title.text
    assert "share of attention" in layout.yaxis.title.text
    assert layout.yaxis.ticksuffix == " %"
    assert "withdrawal layer K" in layout.xaxis2.title.text
    assert "KL divergence, natural log" in layout.yaxis2.title.text
    assert layout.xaxis.range[1] == 5.5


def test_the_reading_says_which_looks_longer():
    # 0.8 of 1.5 by layer 0; 1.2 of 2.3 by layer 3.
    assert overlay_reading(EARLY, LATE) == (
        "Half of the attention to the picture is given by layer 0 of 4 in “early” and by layer 3 of 6 in “late <b>”. "
        "“late <b>” looks at it longer. Withdrawn, the next token moves by a KL divergence of 0.02 at K = 2 and of 2 "
        "at K = 1."
    )
    assert "“late <b>” looks at it longer" in overlay_reading(LATE, EARLY)
    assert "Neither looks at it longer" in overlay_reading(EARLY, dataclasses.replace(EARLY, name="another"))
    assert "moves by a KL divergence of 0 at K = 4" in overlay_reading(at_the_end(EARLY), LATE)
    small = dataclasses.replace(EARLY, kl=(0.5, 0.00002, 0.0))
    assert "moves by a KL divergence of less than 0.0001 at K = 2" in overlay_reading(small, LATE)


def test_a_long_name_is_cut():
    long = dataclasses.replace(EARLY, name="What is the colour of the largest shape?")
    assert "“What is the colour of the l…”" in overlay_reading(long, LATE)
    assert overlay_figure(long, LATE).data[0].name == "What is the colour of the l…, full"
