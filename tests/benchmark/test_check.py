import pytest

from vtw_demo.benchmark.check import moved


def result(prefill=(0.5, 0.52), sweep=(1.5, 1.6), what="small"):
    answer = {"name": "withdrawn at 2", "layer": 2, "median_ratio": {"prefill": 0}, "ratios": [list(prefill)]}
    return {"what": what, "answers": [answer], "overheads": [{"name": "sweep", "rounds": list(sweep)}]}


def test_what_stays_within_the_earlier_spread_has_not_moved():
    assert moved(result(), result((0.51, 0.53), (1.55, 1.55))) == ()


def test_what_leaves_it_is_named_with_both_figures():
    (sentence,) = moved(result(), result(prefill=(0.7, 0.7)))
    assert sentence == "withdrawn at 2, prefill: 0.700, before 0.510 (0.500 to 0.520)."
    (sentence,) = moved(result(), result(sweep=(1.0, 1.0)))
    assert sentence.startswith("sweep: 1.000, before 1.550")


def test_other_things_are_not_compared():
    with pytest.raises(ValueError, match="measure the same"):
        moved(result(), result(what="embedded"))
