"""The simulation against what queueing theory knows."""

import json

import pytest

from tests.replicas_needed import main, median_wait, replicas_needed


def test_with_a_replica_each_nobody_waits():
    assert median_wait(50, [1.0], 50, 10) == 0


def test_with_too_few_all_wait_for_all_others():
    """One replica, nobody reads for long: each waits for the turns of all others, as in a round."""
    assert median_wait(1, [2.0], 20, 0.01) == pytest.approx(19 * 2.0, rel=0.01)


@pytest.mark.parametrize(("service", "reading"), [(0.5, 10), (2.0, 60)])
def test_as_many_as_are_needed_and_not_one_more(service, reading):
    needed = replicas_needed([service], 200, reading)
    # In a closed queue a visitor's round takes reading, waiting and service: what is served follows.
    assert needed == pytest.approx(200 * service / (reading + 5 + service), rel=0.15, abs=1)
    assert median_wait(needed, [service], 200, reading) <= 5
    assert needed == 1 or median_wait(needed - 1, [service], 200, reading) > 5


def test_the_table(tmp_path, capsys):
    file = tmp_path / "load.json"
    file.write_text(json.dumps({"replicas": {"1": [{"alone_seconds": [1.0, 1.0]}]}}))
    assert main([str(file), "--visitors", "100"]) == 0
    said = capsys.readouterr().out
    assert "100 visitors, comparisons of 1.00 s (median)." in said
    assert "| an answer is read for | replicas | median wait |" in said
    assert len([line for line in said.splitlines() if line.endswith("s |")]) == 4
