"""What calibrations have measured, in files of the user's cache folder: one folder a model."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import platformdirs

from vtw_demo.files import write_all, write_whole
from vtw_demo.models.loading import VisionLanguageModel


class CalibrationStore:
    """The files of one model, one revision and one quantization.

    Measurements are lines of a file that only grows, so that nothing is lost when a calibration is killed. The result
    is replaced as a whole. Where they can't be written, `problem` says why, until a result is kept: a calibration goes
    on without its files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problem: str | None = None

    @classmethod
    def of(cls, vlm: VisionLanguageModel, cache: Path | None = None) -> CalibrationStore:
        """The store of a loaded model, in the user's cache folder or in `cache`."""
        identity = repr((vlm.name, vlm.revision, vlm.quantization, vlm.precision))
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", vlm.name).strip("-.")[-40:] or "model"
        parent = cache or Path(platformdirs.user_cache_dir("vtw-demo", appauthor=False)) / "calibrations"
        return cls(parent / f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}")

    @property
    def result_file(self) -> Path:
        return self.folder / "calibration.json"

    def measurements(self, layers: int) -> dict[str, tuple[tuple[float, ...], tuple[float, ...] | None]]:
        """Divergences and FLOPs left at so many layers, by the sample's fingerprint: those lines that are whole."""
        found = {}
        try:
            lines = (self.folder / "measurements.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return {}
        for line in lines:
            try:
                row = json.loads(line)
                sample, kl, flops = row["sample"], row["kl"], row["flops_left"]
            except (ValueError, KeyError, TypeError):
                continue  # a line that was being written when its process was killed
            if _are_numbers(kl, layers) and (flops is None or _are_numbers(flops, layers)):
                found[str(sample)] = (tuple(kl), None if flops is None else tuple(flops))
        return found

    def keep_measurement(self, sample: str, kl: tuple[float, ...], flops_left: tuple[float, ...] | None) -> None:
        # Begun by a line's end: the last line may have been cut short.
        line = "\n" + json.dumps({"sample": sample, "kl": kl, "flops_left": flops_left}) + "\n"
        file = self.folder / "measurements.jsonl"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # In one piece: another process may be adding lines, too.
            with file.open("ab", buffering=0) as lines:
                write_all(lines.fileno(), line.encode())
        except OSError as error:
            self.problem = self._unkept(error)

    def result(self) -> dict[str, Any] | None:
        """The last result; None if there is none that can be read."""
        try:
            return json.loads(self.result_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def keep_result(self, result: dict[str, Any]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.result_file, json.dumps(result, indent=1).encode())
            self.problem = None
        except OSError as error:
            self.problem = self._unkept(error)

    def _unkept(self, error: OSError) -> str:
        return f"What was measured can't be kept in {self.folder}: {error.strerror or error}"


def _are_numbers(values: Any, length: int) -> bool:
    """So many finite numbers from 0 on."""
    return (
        isinstance(values, Sequence)
        and len(values) == length
        and all(isinstance(value, int | float) and math.isfinite(value) and value >= 0 for value in values)
    )
