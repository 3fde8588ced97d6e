"""Means with their 95 % intervals: the bootstrap.

What is drawn again is pictures, each with all its questions: those about one picture aren't independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vtw_demo.errors import UserError

CONFIDENCE = 0.95
RESAMPLES = 2000
_DRAWN_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A mean, and the interval that holds it in 95 % of the resamples. Raises ValueError where the ends are turned."""

    mean: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"An interval goes up; this is {self.low} to {self.high}.")

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return asdict(self)


def estimates(values: Sequence[Sequence[float]], groups: Sequence[str], seed: int = 0) -> tuple[Estimate, ...]:
    """The mean of each column with its interval (percentiles 2.5 and 97.5 of the bootstrap).

    - `values`, (samples, columns); `groups`: of each sample, what is drawn with all that is in it. All columns are
      drawn alike, so that the difference of two is as steady as it is on the samples.

    Raises ValueError without samples, and for lengths that don't fit.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or not len(table) or len(table) != len(groups):
        raise UserError(f"{len(groups)} groups don't go with values of the shape {table.shape}.")
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.zeros((len(names), table.shape[1]))
    np.add.at(sums, group, table)
    counts = np.bincount(group).astype(np.float64)
    generator = np.random.default_rng(seed)
    means = []
    at_once = max(1, _DRAWN_AT_ONCE // len(names))
    for start in range(0, RESAMPLES, at_once):
        rows = min(at_once, RESAMPLES - start)
        drawn = generator.integers(len(names), size=(rows, len(names)))
        times = np.bincount((drawn + np.arange(rows)[:, None] * len(names)).ravel(), minlength=rows * len(names))
        weights = times.reshape(rows, len(names)).astype(np.float64)
        means.append((weights @ sums) / (weights @ counts)[:, None])
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(means), [outside, 1 - outside], axis=0)
    return tuple(
        Estimate(float(mean), float(least), float(most))
        for mean, least, most in zip(table.mean(0), low, high, strict=True)
    )
