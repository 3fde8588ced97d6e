import math
from dataclasses import replace

import pytest

from vtw_demo.comparison.calibration import Calibration, Measurement
from vtw_demo.comparison.compare import LayerAnswer
from vtw_demo.measurements.query_sweep import QuerySweep, TokenProbability
from vtw_demo.plots.divergence import divergence_figure, divergence_reading, divergence_table
from vtw_demo.plots.every_layer import answer_times_figure
from vtw_demo.plots.words import words_figure, words_reading

TOKEN = TokenProbability("a", 1.0)
ROWS = ((0.5, 0.02, 0.0, 0.001), (0.3, 0.0, 0.004, 0.001))
LEFT = (0.2, 0.4, 0.6, 0.8)


def calibration(threshold=0.003, rows=ROWS):
    measurements = tuple(Measurement(row, LEFT) for row in rows)
    return Calibration("m", "r", None, "float32", "usual", "tests", threshold, tuple("ab"), measurements)


def query(kl=(0.4, 0.2, 0.1, 0.0)):
    return QuerySweep(
        kl=kl,
        full_tokens=(TOKEN,),
        withdrawn_tokens=((TOKEN,),) * 4,
        flops_left=LEFT,
        cache_left=LEFT,
        answer=("a", " star", "(end)"),
        answer_kl=((0.4, 2.0, 0.0), (0.2, 0.5, 0.0), (0.1, 0.0, 0.0), (0.0, 0.0, 0.0)),
        answer_choices=(("a", " heart", "(end)"),) * 2 + (("a", " star", "(end)"),) * 2,
    )


def trace(figure, name):
    return next(data for data in figure.data if name in (data.name or ""))


def test_the_curve_is_the_mean_with_band_threshold_and_choice():
    figure = divergence_figure(query(), calibration())
    mean = trace(figure, "mean of 2 samples")
    assert list(mean.x) == [1, 2, 3, 4]
    assert list(mean.y) == pytest.approx([0.4, 0.01, 0.002, 0.001])
    assert trace(figure, "80 % of the samples").y[0] == pytest.approx(0.32)
    assert list(trace(figure, "this question").customdata) == [0.4, 0.2, 0.1, 0.0]
    assert min(trace(figure, "this question").y) > 0  # a logarithmic axis has no 0
    assert list(trace(figure, "FLOPs left").y) == pytest.approx([20, 40, 60, 80])
    assert trace(figure, "FLOPs left").yaxis == "y2"
    assert figure.layout.yaxis.type == "log"
    lines = [(shape.x0, shape.x1, shape.y0, shape.y1) for shape in figure.layout.shapes]
    assert (0, 1, 0.003, 0.003) in lines
    assert (3, 3, 0, 1) in lines
    (threshold,) = (a for a in figure.layout.annotations if "threshold" in a.text)
    assert threshold.y == pytest.approx(math.log10(0.003))


def test_either_part_may_be_missing():
    assert len(divergence_figure(query(), None).data) == 3
    assert len(divergence_figure(None, calibration()).data) == 4
    assert not divergence_figure(None, None).data
    assert not divergence_figure(None, None).layout.shapes


def test_the_reading_says_whether_this_question_needs_more_layers():
    assert "K = 3 is the first" in divergence_reading(None, calibration())
    for kl, said in (
        ((0.4, 0.2, 0.1, 0.0), "from K = 4 on: it needs 1 layer more"),
        ((0.0, 0.2, 0.1, 0.0), "from K = 4 on: it needs 1 layer more"),  # above it again at K = 2
        ((0.4, 0.0, 0.0, 0.0), "from K = 2 on: it needs 1 layer fewer"),
        ((0.4, 0.2, 0.0, 0.0), "from K = 3 on, the same K"),
        ((0.4, 0.2, 0.1, 0.1), "is above 0.003 even at K = 4"),
    ):
        reading = divergence_reading(replace(query(kl), answer=("star", "(end)")), calibration())
        assert "This question's first token" in reading
        assert said in reading
    assert "isn't calibrated yet" in divergence_reading(None, None)
    assert "at 0.003 or below from K = 4 on." in divergence_reading(query(), None)
    assert "No K meets" in divergence_reading(None, calibration(1e-9))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)), "from K = 3 on"),
        (((0.0, 0.0, 0.0),) * 4, "from K = 1 on"),
        (((0.0, 0.0, 0.0),) * 3 + ((0.0, 0.9, 0.0),), "is above 0.003 even at K = 4"),
    ],
)
def test_an_answer_of_several_words_is_judged_as_a_whole(rows, said):
    """Whatever its first token says: that is below the threshold everywhere, or above it everywhere."""
    for kl in ((0.0,) * 4, (1.0,) * 4):
        long = replace(query(kl), answer_kl=rows)
        reading = divergence_reading(long, None)
        assert "This question's whole answer, the mean over its 3 tokens," in reading
        assert said in reading
        drawn = trace(divergence_figure(long, None), "its whole answer")
        assert list(drawn.customdata) == pytest.approx([sum(row) / 3 for row in rows])
        assert [row[2] for row in divergence_table(long, None).rows] == list(long.to_json()["answer_mean_kl"])


def test_the_heatmap_has_a_cell_for_each_layer_and_token():
    figure = words_figure(query())
    heatmap, changed = figure.data
    assert [len(row) for row in heatmap.z] == [3] * 4
    assert heatmap.z[0][1] == pytest.approx(math.log10(2.0))
    assert list(heatmap.y) == [1, 2, 3, 4]
    assert list(heatmap.customdata[1][1]) == [" star", " heart", 0.5]
    assert list(zip(changed.x, changed.y, strict=True)) == [(1, 1), (1, 2)]
    assert "KL" in heatmap.hovertemplate
    assert list(figure.layout.xaxis.ticktext) == ["a", "star", "(end)"]


def test_the_heatmaps_reading_names_the_token_that_needs_the_picture_longest():
    assert "Token 1, “a”, needs the picture longest: its KL is above 0.003 before K = 4" in words_reading(
        query(), 0.003
    )
    assert "Token 2, “star”" in words_reading(query(), 0.45)
    assert "No token" in words_reading(query(), 3.0)


def test_times_by_layer_beside_the_full_runs(make_run):
    full = make_run()
    answers = [LayerAnswer(layer, make_run(prefill_ms=10.0 * layer)) for layer in (1, 2, 3)]
    figure = answer_times_figure(full, answers)
    assert list(trace(figure, "prefill").y) == [10, 20, 30]
    assert [shape.y0 for shape in figure.layout.shapes] == [40, 4]
    one_token = make_run(decode_ms_per_token=None)
    assert len(answer_times_figure(one_token, [LayerAnswer(1, one_token)]).data) == 1
