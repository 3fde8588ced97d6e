"""Visual Tokens Withdrawal (AAAI 2025, arXiv 2405.05803) as a library; the demo's page reads it.

A name is loaded when it is asked for, so that the method comes without what `load` and `compare` need.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtw_demo.comparison.calibration import Calibration, calibrate
    from vtw_demo.comparison.compare import compare
    from vtw_demo.measurements.attention import measure_attention
    from vtw_demo.measurements.layer_sweep import Sweep, choose_layer, sweep
    from vtw_demo.models.loading import load
    from vtw_demo.withdrawal.fastv import fastv
    from vtw_demo.withdrawal.prune import prune
    from vtw_demo.withdrawal.pyramid_drop import pyramid_drop
    from vtw_demo.withdrawal.random_tokens import random_tokens
    from vtw_demo.withdrawal.uniform_grid import uniform_grid
    from vtw_demo.withdrawal.withdraw import withdraw

__all__ = [
    "Calibration",
    "Sweep",
    "calibrate",
    "choose_layer",
    "compare",
    "fastv",
    "load",
    "measure_attention",
    "prune",
    "pyramid_drop",
    "random_tokens",
    "sweep",
    "uniform_grid",
    "withdraw",
]

_MODULES = {
    "Calibration": "comparison.calibration",
    "Sweep": "measurements.layer_sweep",
    "calibrate": "comparison.calibration",
    "choose_layer": "measurements.layer_sweep",
    "compare": "comparison.compare",
    "fastv": "withdrawal.fastv",
    "load": "models.loading",
    "measure_attention": "measurements.attention",
    "prune": "withdrawal.prune",
    "pyramid_drop": "withdrawal.pyramid_drop",
    "random_tokens": "withdrawal.random_tokens",
    "sweep": "measurements.layer_sweep",
    "uniform_grid": "withdrawal.uniform_grid",
    "withdraw": "withdrawal.withdraw",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
