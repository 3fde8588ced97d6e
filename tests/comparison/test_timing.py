import statistics
import time

import pytest
import torch

from vtw_demo.comparison.timing import Clock, Ratio, Spread, in_turn, interleaved, peak_memory, ratios

CPU = torch.device("cpu")


def test_runs_take_turns_and_the_order_turns_around():
    calls = []
    runs = {name: lambda name=name: calls.append(name) or name.upper() for name in "abc"}
    yielded = list(in_turn(runs, 2))
    assert "".join(calls) == "abc" + "cba" + "abc"
    assert yielded == [(name, name.upper()) for name in "cbaabc"]
    with pytest.raises(ValueError, match="At least 1 round"):
        list(in_turn(runs, 0))


def test_each_run_has_a_time_a_round():
    times = interleaved({"short": lambda: None, "long": lambda: time.sleep(0.01)}, 3, CPU)
    assert [len(of_run) for of_run in times.values()] == [3, 3]
    assert min(times["long"]) >= 0.01
    assert ratios([2.0, 9.0], [1.0, 3.0]) == (2.0, 3.0)


def test_without_a_round_to_warm_up_every_round_counts():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    assert [name for name, _ in in_turn(runs, 2, warm_up=False)] == calls == list("abba")


def test_pauses_are_not_counted():
    clock = Clock(CPU)
    start = clock.now()
    with clock.paused():
        time.sleep(0.2)
    assert 0 <= clock.now() - start < 0.1


def test_a_ratio_has_its_median():
    ratio = Ratio("a", (3.0, 1.0, 2.0))
    assert ratio.median == 2.0
    assert ratio.to_json() == {"name": "a", "rounds": (3.0, 1.0, 2.0), "bar": None, "median": 2.0}


def test_the_spread_is_the_extremes_the_quartiles_and_the_median():
    values = [7.0, 1.0, 3.0, 4.5, 10.0, 2.0]
    spread = Spread.of(values)
    assert (spread.lowest, spread.highest) == (1, 10)
    quartiles = (spread.lower_quartile, spread.median, spread.upper_quartile)
    assert quartiles == pytest.approx(statistics.quantiles(values, n=4, method="inclusive"))
    assert Spread.of([2.0]) == Spread(2, 2, 2, 2, 2)


def test_memory_held_meanwhile_is_seen():
    def hold():
        held = [torch.ones(1_000_000) for _ in range(50)]
        time.sleep(0.02)
        del held

    for _ in range(2):  # what the first has freed doesn't hide the second
        assert peak_memory(hold, CPU) == pytest.approx(200e6, rel=0.25)
