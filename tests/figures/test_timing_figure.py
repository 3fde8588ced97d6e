from vtw_demo.figures.timing import timing_figure, timing_reading


def test_timing_has_a_pair_of_bars_for_each_stage_there_was(make_comparison, make_run):
    figure = timing_figure(make_comparison())
    full, withdrawn = figure.data
    assert list(full.y) == [5, 40, 4, 49]
    assert list(withdrawn.y) == [5, 25, 4, 49]
    one_token = make_run(decode_ms_per_token=None)
    short = timing_figure(make_comparison(one_token, one_token))
    assert [len(trace.x) for trace in short.data] == [3, 3]


def test_the_timing_reading_names_both_times(make_comparison):
    assert "25.0 ms instead of 40.0 ms" in timing_reading(make_comparison())
