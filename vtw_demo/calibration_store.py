"""What calibrations have measured, in files of the user's cache folder: one folder a model."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import platformdirs

from vtw_demo.models import VisionLanguageModel


class CalibrationStore:
    """The files of one model, one revision and one quantization.

    Measurements are lines of a file that only grows, so that nothing is lost when a calibration is killed. The result
    is replaced as a whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

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
        """Divergences and FLOPs left at so many layers, by the sample's fingerprint."""
        found = {}
        try:
            lines = (self.folder / "measurements.jsonl").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return {}
        for line in lines:
            try:
                row = json.loads(line)
                kl, flops = tuple(row["kl"]), row["flops_left"]
                if len(kl) == layers:
                    found[row["sample"]] = (kl, None if flops is None else tuple(flops))
            except (ValueError, KeyError, TypeError):
                continue  # a line that was being written when its process was killed
        return found

    def keep_measurement(self, sample: str, kl: tuple[float, ...], flops_left: tuple[float, ...] | None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # Begun by a line's end: the last line may have been cut short.
        line = "\n" + json.dumps({"sample": sample, "kl": kl, "flops_left": flops_left}) + "\n"
        with (self.folder / "measurements.jsonl").open("a", encoding="utf-8") as file:
            file.write(line)

    def result(self) -> dict[str, Any] | None:
        """The last result; None if there is none that can be read."""
        try:
            return json.loads(self.result_file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def keep_result(self, result: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.result_file, json.dumps(result, indent=1).encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(unfinished, path)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise
