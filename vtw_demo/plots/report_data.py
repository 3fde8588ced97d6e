"""The whole comparison as plain data: what every plot draws, with the machine and the versions that it comes from."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from vtw_demo.comparison.analysis import Examination
from vtw_demo.comparison.calibration import Calibration
from vtw_demo.comparison.machine import Machine


def report_data(examination: Examination, calibration: Calibration | None, machine: Machine) -> dict[str, Any]:
    """For `json.dumps`. What isn't measured yet is measured."""
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.to_json(),
        **examination.to_json(),
        "calibration": None if calibration is None else calibration.to_json(),
    }
