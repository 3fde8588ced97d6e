"""Wide grids of cases, of which a part runs every time."""

from collections.abc import Iterable
from typing import Any

import pytest


def nightly_but(daily: Iterable[Any], cases: Iterable[Any]) -> list[Any]:
    """Cases for `parametrize`, of which those that aren't in `daily` run nightly."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)), marks=() if case in daily else pytest.mark.nightly
        )
        for case in cases
    ]
