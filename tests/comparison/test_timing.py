import time

import pytest
import torch

from vtw_demo.comparison.timing import Ratio, in_turn, interleaved, peak_memory, ratios

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


def test_a_ratio_has_rounds():
    assert Ratio("a", (3.0, 1.0, 2.0)).median == 2.0
    for rounds in ((), (1.0, 0.0)):
        with pytest.raises(ValueError, match="positive ratio"):
            Ratio("a", rounds)


def test_memory_held_meanwhile_is_seen():
    for _ in range(2):  # what the first has freed doesn't hide the second
        with peak_memory(CPU) as peak:
            held = [torch.ones(1_000_000) for _ in range(50)]
            time.sleep(0.02)
            del held
        assert peak[0] == pytest.approx(200e6, rel=0.25)
