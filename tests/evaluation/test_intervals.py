import math
import statistics

import pytest

from vtw_demo.evaluation.metrics import estimates


def test_interval_of_a_share_is_the_binomials():
    right = [[1.0]] * 300 + [[0.0]] * 100
    (found,) = estimates(right, [str(number) for number in range(400)])
    width = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert found.mean == 0.75
    assert found.low == pytest.approx(0.75 - width, abs=0.008)
    assert found.high == pytest.approx(0.75 + width, abs=0.008)


def test_questions_about_one_picture_count_as_one():
    """Ten equal answers a picture: the interval is that of the pictures, not of ten times as many."""
    values = [[float(number % 3 == 0)] for number in range(60) for _ in range(10)]
    (grouped,) = estimates(values, [str(number) for number in range(60) for _ in range(10)])
    (alone,) = estimates(values[::10], [str(number) for number in range(60)])
    (apart,) = estimates(values, [str(number) for number in range(600)])
    assert grouped.high - grouped.low == pytest.approx(alone.high - alone.low, rel=0.1)
    assert grouped.high - grouped.low > 2 * (apart.high - apart.low)


def test_columns_are_drawn_alike():
    """A difference that is the same on every sample is sure, however much both vary."""
    values = [[float(number % 2), number % 2 - 0.25, 0.25] for number in range(50)]
    first, second, difference = estimates(values, [str(number) for number in range(50)])
    assert (difference.low, difference.mean, difference.high) == (0.25, 0.25, 0.25)
    assert first.low - second.low == pytest.approx(0.25)
    assert first.mean == statistics.fmean(row[0] for row in values)


def test_seed_decides():
    values, groups = [[float(number % 7)] for number in range(40)], [str(number) for number in range(40)]
    assert estimates(values, groups, 3) == estimates(values, groups, 3)
    assert estimates(values, groups, 3) != estimates(values, groups, 4)
