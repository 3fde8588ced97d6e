"""Visual Tokens Withdrawal (AAAI 2025, arXiv 2405.05803) as a library; the demo's page reads it."""

from vtw_demo.comparison.calibration import Calibration, calibrate
from vtw_demo.comparison.compare import compare
from vtw_demo.measurements.attention import measure_attention
from vtw_demo.measurements.layer_sweep import Sweep, choose_layer, sweep
from vtw_demo.models.loading import load
from vtw_demo.withdrawal.withdraw import withdraw

__all__ = [
    "Calibration",
    "Sweep",
    "calibrate",
    "choose_layer",
    "compare",
    "load",
    "measure_attention",
    "sweep",
    "withdraw",
]
