import dataclasses

import pytest

from vtw_demo.comparison.repeated_timing import RepeatedTiming, StageTimes
from vtw_demo.plots.timing import timing_figure, timing_reading, timing_table

FULL = StageTimes((5.0, 6.0, 4.0), (40.0, 80.0, 50.0), (4.0, 4.0, 5.0), (60.0, 100.0, 80.0))
WITHDRAWN = StageTimes((5.0, 3.0, 4.0), (20.0, 60.0, 30.0), (4.0, 5.0, 5.0), (40.0, 80.0, 60.0))
REPEATED = RepeatedTiming(6, FULL, WITHDRAWN)
ONE_TOKEN = RepeatedTiming(
    6, dataclasses.replace(FULL, decode_ms_per_token=()), dataclasses.replace(WITHDRAWN, decode_ms_per_token=())
)


def bars_of(figure):
    return [trace for trace in figure.data if trace.type == "bar"]


def points_of(figure, mode):
    return [trace for trace in figure.data if trace.type == "scatter" and trace.mode == mode]


def test_timing_has_a_pair_of_bars_for_each_stage_there_was(make_comparison, make_run):
    figure = timing_figure(make_comparison())
    full, withdrawn = figure.data
    assert list(full.y) == [5, 40, 4, 49]
    assert list(withdrawn.y) == [5, 25, 4, 49]
    assert list(full.text) == ["5.00", "40.0", "4.00", "49.0"]
    one_token = make_run(decode_ms_per_token=None)
    short = timing_figure(make_comparison(one_token, one_token))
    assert [len(trace.x) for trace in short.data] == [3, 3]


def test_a_stage_that_one_run_has_is_shown(make_comparison, make_run):
    full, withdrawn = timing_figure(make_comparison(make_run(decode_ms_per_token=None))).data
    assert list(full.y) == [5, 40, None, 49]
    assert list(withdrawn.y) == [5, 25, 4, 49]


def test_with_rounds_bars_are_medians_with_the_extremes(make_comparison):
    figure = timing_figure(make_comparison(), REPEATED)
    full, withdrawn = bars_of(figure)
    assert list(full.y) == [5, 50, 4, 80]
    assert list(withdrawn.y) == [4, 30, 5, 60]
    for bars, times in ((full, FULL), (withdrawn, WITHDRAWN)):
        tops = [median + above for median, above in zip(bars.y, bars.error_y.array, strict=True)]
        bottoms = [median - below for median, below in zip(bars.y, bars.error_y.arrayminus, strict=True)]
        rounds = dataclasses.astuple(times)
        assert tops == pytest.approx([max(of_stage) for of_stage in rounds])
        assert bottoms == pytest.approx([min(of_stage) for of_stage in rounds])
    assert "median of 3 rounds" in figure.layout.yaxis.title.text
    assert any("lowest to highest" in (trace.name or "") for trace in figure.data if trace.showlegend)


def test_each_round_is_a_dot_on_its_own_bar(make_comparison):
    figure = timing_figure(make_comparison(), REPEATED)
    bars, dots = bars_of(figure), points_of(figure, "markers")
    for bar, dot, times in zip(bars, dots, (FULL, WITHDRAWN), strict=True):
        assert bar.offsetgroup == dot.offsetgroup
        by_stage = {stage: [] for stage in bar.x}
        for stage, time in zip(dot.x, dot.y, strict=True):
            by_stage[stage].append(time)
        assert [tuple(of_stage) for of_stage in by_stage.values()] == list(dataclasses.astuple(times))
    assert figure.layout.scattermode == figure.layout.barmode == "group"


def test_the_medians_figures_stand_above_the_highest_round(make_comparison):
    figure = timing_figure(make_comparison(), REPEATED)
    full, withdrawn = points_of(figure, "markers+text")
    assert list(full.text) == ["5.00", "50.0", "4.00", "80.0"]
    assert list(full.y) == [6, 80, 5, 100]
    assert list(withdrawn.text) == ["4.00", "30.0", "5.00", "60.0"]
    assert list(withdrawn.y) == [5, 60, 5, 80]


def test_rounds_of_one_token_have_three_stages(make_comparison):
    figure = timing_figure(make_comparison(), ONE_TOKEN)
    assert [len(trace.x) for trace in bars_of(figure)] == [3, 3]


def test_the_timing_reading_names_both_times(make_comparison, make_run):
    sentence = timing_reading(make_comparison())
    assert "25.0 ms instead of 40.0 ms" in sentence
    assert "each further token" in sentence
    assert "each further token" not in timing_reading(make_comparison(make_run(decode_ms_per_token=None)))


def test_the_reading_of_rounds_gives_the_ratio_and_its_range(make_comparison):
    # Prefill: 0.5, 0.75 and 0.6; decode: 1, 1.25 and 1.
    sentence = timing_reading(make_comparison(), REPEATED)
    assert sentence.startswith("In the median of 3 interleaved rounds, withdrawn,")
    assert "prefill takes 0.60 times as long, from 0.50 to 0.75" in sentence
    assert "each further token takes 1.00 times as long, from 1.00 to 1.25" in sentence
    assert "each further token" not in timing_reading(make_comparison(), ONE_TOKEN)


def test_the_table_has_the_plots_numbers(make_comparison):
    table = timing_table(make_comparison())
    assert table.columns == ("stage", "run", "time (ms)")
    assert table.rows[2:4] == (("prefill", "full", 40), ("prefill", "withdrawn", 25))
    table = timing_table(make_comparison(), REPEATED)
    assert table.columns[2:] == (
        "median (ms)", "lowest (ms)", "highest (ms)", "round 1 (ms)", "round 2 (ms)", "round 3 (ms)",
    )  # fmt: skip
    assert table.rows[3] == ("prefill", "withdrawn", 30, 20, 60, 20, 60, 30)
    assert table.rows[-1] == ("total", "withdrawn", 60, 40, 80, 40, 80, 60)
    none = timing_table(make_comparison(), ONE_TOKEN).rows[4]
    assert none == ("decode, per token", "full", *[None] * 6)


def test_one_round_is_no_median(make_comparison):
    one = StageTimes((5.0,), (40.0,), (4.0,), (60.0,))
    repeated = RepeatedTiming(6, one, one)
    assert timing_reading(make_comparison(), repeated).startswith("In one round, withdrawn, prefill takes 1.00 times")
    assert timing_figure(make_comparison(), repeated).layout.yaxis.title.text == "time in ms, one run"


@pytest.mark.parametrize("repeated", [None, REPEATED])
def test_totals_of_answers_of_different_lengths_are_marked(make_comparison, make_run, repeated):
    comparison = make_comparison(make_run(tokens=(1, 2)), make_run(tokens=(1, 2, 3, 4, 5)))
    assert "The totals are of answers of 2 and 5 tokens" in timing_reading(comparison, repeated)
    assert "totals" not in timing_reading(make_comparison(), repeated)


def test_totals_are_without_encoding_where_that_was_done_once(make_comparison, make_run):
    comparison = make_comparison(withdrawn=make_run(encode_ms=None, total_ms=29.0))
    full, withdrawn = timing_figure(comparison).data
    assert list(full.y) == [5, 40, 4, 44]
    assert list(withdrawn.y) == [None, 40, 4, 29]
    assert full.x[-1] == "total<br>without encoding"
    assert timing_table(comparison).rows[-2:] == (
        ("total without encoding", "full", 44),
        ("total without encoding", "withdrawn", 29),
    )
    assert "encoded once, for both; the totals are without that" in timing_reading(comparison)
    # Rounds encode it every time.
    assert timing_table(comparison, REPEATED).rows[-1][0] == "total"
    assert "the same work in both" in timing_reading(comparison, REPEATED)
