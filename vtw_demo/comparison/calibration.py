"""The withdrawal layer for a model: the divergence at every K, measured on a few samples, and kept in the user's cache.

arXiv 2405.05803, section 4.3: K is the first layer at which the mean divergence over about 20 samples is at most a
threshold. The paper's divergence is that of an answer's first token; a sample here may ask for more of them.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import statistics
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch

from vtw_demo.comparison.samples import Sample, askable
from vtw_demo.errors import UserError
from vtw_demo.files import write_all, write_whole
from vtw_demo.formats import PlainData, sentences
from vtw_demo.measurements.flops import flops_left
from vtw_demo.measurements.layer_sweep import choose_layer, sweep
from vtw_demo.models.devices import on_model_thread
from vtw_demo.models.loading import VisionLanguageModel
from vtw_demo.models.prompt import Prompt

DEFAULT_SAMPLES = 20
DEFAULT_THRESHOLD = 0.003


@dataclass(frozen=True)
class Measurement:
    """One sample's divergence at K = 1 to L - 1, and the share of the prefill's FLOPs left there, if that is known."""

    kl: tuple[float, ...]
    flops_left: tuple[float, ...] | None

    @classmethod
    def from_json(cls, written: dict[str, Any]) -> Measurement:
        left = written["flops_left"]
        return cls(tuple(written["kl"]), None if left is None else tuple(left))


@dataclass(frozen=True)
class Calibration(PlainData):
    """The divergence at every K on some `samples`, named, of `data`, and the K that follows. `model`, `revision`,
    `quantization`, `precision` and `detail` are as in `VisionLanguageModel`."""

    model: str
    revision: str
    quantization: str | None
    precision: str
    detail: str
    data: str
    threshold: float
    samples: tuple[str, ...]
    measurements: tuple[Measurement, ...]

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(range(1, len(self.measurements[0].kl) + 1))

    @property
    def mean(self) -> tuple[float, ...]:
        return tuple(map(statistics.fmean, zip(*(m.kl for m in self.measurements), strict=True)))

    @property
    def standard_deviation(self) -> tuple[float, ...]:
        return tuple(map(statistics.pstdev, zip(*(m.kl for m in self.measurements), strict=True)))

    def quantile(self, share: float) -> tuple[float, ...]:
        """What so large a share of the samples (0 to 1) stays at or below, at each K."""
        return tuple(np.quantile([m.kl for m in self.measurements], share, axis=0).tolist())

    @property
    def flops_left(self) -> tuple[float, ...] | None:
        """The mean share of the prefill's FLOPs left at each K; None where costs aren't known."""
        known = [m.flops_left for m in self.measurements if m.flops_left is not None]
        if len(known) < len(self.measurements):
            return None
        return tuple(map(statistics.fmean, zip(*known, strict=True)))

    @property
    def layer(self) -> int | None:
        """The first K whose mean divergence is at most the threshold; None if there is none."""
        return choose_layer(self.layers, [self.mean], self.threshold)

    @property
    def nearest_layer(self) -> int:
        """`layer`, or where there is none the K of the smallest mean divergence."""
        return self.layer or min(self.layers, key=lambda layer: self.mean[layer - 1])

    def sentence(self) -> str:
        above = [layer for layer in self.layers[self.nearest_layer :] if self.mean[layer - 1] > self.threshold]
        return sentences(Path(__file__).with_name("calibration.txt"), calibration=self, above=above)

    @classmethod
    def from_json(cls, written: dict[str, Any]) -> Calibration:
        """Raises UserError for what `to_json` hasn't written."""
        try:
            names = ("model", "revision", "quantization", "precision", "detail", "data", "threshold")
            read = cls(
                **{name: written[name] for name in names},
                samples=tuple(written["samples"]),
                measurements=tuple(map(Measurement.from_json, written["measurements"])),
            )
            if not all(_are_numbers(measurement.kl, len(read.layers)) for measurement in read.measurements):
                raise UserError("Its divergences are no numbers.")
            read.to_json()  # fails for measurements that don't go together, and what is no threshold
            if len(read.samples) != len(read.measurements):
                raise UserError(f"{len(read.samples)} samples have {len(read.measurements)} measurements.")
            return read
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UserError(f"This is no calibration: {error!r}.") from error


class CalibrationStore:
    """What is kept of calibrations of one model, one revision, one quantization and one detail of pictures: a folder.

    Measurements are lines of a file that only grows, so that nothing is lost when a calibration is killed. Where they
    can't be written, `problem` says why, until a result is kept: a calibration goes on without its files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.result_file = folder / "calibration.json"
        self.measurements_file = folder / "measurements.jsonl"
        self.problem: str | None = None

    @classmethod
    def of(cls, vlm: VisionLanguageModel, cache: Path | None = None) -> CalibrationStore:
        """The store of a loaded model, in the user's cache folder or in `cache`."""
        weights = vlm.name, vlm.revision, vlm.quantization, vlm.precision
        identity = repr((*weights, *vlm.picture_settings.items()))  # "usual" isn't the same on every device
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", vlm.name).strip("-.")[-40:] or "model"
        parent = cache or Path(platformdirs.user_cache_dir("vtw-demo", appauthor=False)) / "calibrations"
        return cls(parent / f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}")

    def measurements(self, layers: int) -> dict[str, Measurement]:
        """Those of so many layers, by the sample's fingerprint: the lines that are whole."""
        found, lines = {}, ""
        with suppress(OSError):
            lines = self.measurements_file.read_text(encoding="utf-8", errors="replace")
        for line in lines.splitlines():
            with suppress(ValueError, KeyError, TypeError):  # it was being written when its process was killed
                row = json.loads(line)
                measurement = Measurement.from_json(row)
                kept = (measurement.kl, measurement.flops_left)
                if all(values is None or _are_numbers(values, layers) for values in kept):
                    found[str(row["sample"])] = measurement
        return found

    def keep_measurement(self, sample: str, measurement: Measurement) -> None:
        # Begun by a line's end: the last line may have been cut short.
        line = "\n" + json.dumps({"sample": sample, **asdict(measurement)}) + "\n"
        # In one piece: another process may be adding lines, too.
        with self._writing(), self.measurements_file.open("ab", buffering=0) as lines:
            write_all(lines.fileno(), line.encode())

    def result(self) -> Calibration | None:
        """The last calibration; None if there is none that can be read."""
        try:
            return Calibration.from_json(json.loads(self.result_file.read_text(encoding="utf-8")))
        except (OSError, ValueError):  # UserError too: it may be of another version of this project
            return None

    def keep_result(self, calibration: Calibration) -> None:
        with self._writing():
            write_whole(self.result_file, json.dumps(calibration.to_json(), indent=1).encode())
            self.problem = None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            self.problem = f"What was measured can't be kept in {self.folder}: {error.strerror or error}"


def _are_numbers(values: Sequence[Any], length: int) -> bool:
    """So many finite numbers from 0 on."""
    return len(values) == length and all(
        isinstance(value, int | float) and math.isfinite(value) and value >= 0 for value in values
    )


@dataclass(frozen=True)
class CalibrationProgress:
    measured: int
    samples: int
    so_far: Calibration


class Calibrating:
    """A calibration while it is made. With a `store`, samples that it has measurements of are `measured` already, and
    each new one is kept at once: one that was stopped, or killed, goes on where it was. Only samples that are
    `askable` count.

    Raises UserError for no samples, and a threshold that isn't a number from 0 on.
    """

    def __init__(
        self,
        vlm: VisionLanguageModel,
        samples: Sequence[Sample],
        threshold: float = DEFAULT_THRESHOLD,
        data: str = "the user's samples",
        store: CalibrationStore | None = None,
        strict: bool = False,
    ) -> None:
        if not samples:
            raise UserError("There are no samples to calibrate on.")
        choose_layer((1,), [[0.0]], threshold)  # refuses what is no threshold, before anything is measured
        self._identity = vlm.name, vlm.revision, vlm.quantization, vlm.precision, vlm.detail, data, threshold
        self._samples = askable(vlm, data, samples, strict)
        known = {} if store is None else store.measurements(vlm.layers - 1)
        asked = {sample.fingerprint for sample in self._samples}
        self.measured = {fingerprint: of for fingerprint, of in known.items() if fingerprint in asked}
        self._store = store

    @property
    def left(self) -> tuple[Sample, ...]:
        """Each once, however often it is among the samples."""
        by_fingerprint = {sample.fingerprint: sample for sample in self._samples}
        return tuple(sample for name, sample in by_fingerprint.items() if name not in self.measured)

    @property
    def so_far(self) -> Calibration:
        done = [sample for sample in self._samples if sample.fingerprint in self.measured]
        names, measurements = (sample.name for sample in done), (self.measured[sample.fingerprint] for sample in done)
        return Calibration(*self._identity, tuple(names), tuple(measurements))

    @property
    def progress(self) -> CalibrationProgress:
        so_far = self.so_far
        return CalibrationProgress(len(so_far.samples), len(self._samples), so_far)

    def keep(self, fingerprint: str, measurement: Measurement) -> CalibrationProgress:
        if self._store is not None:
            self._store.keep_measurement(fingerprint, measurement)
        self.measured[fingerprint] = measurement
        return self.progress

    def finish(self) -> Calibration:
        calibration = self.so_far
        if self._store is not None:
            self._store.keep_result(calibration)
        return calibration


def calibrate(
    vlm: VisionLanguageModel,
    samples: Sequence[Sample],
    threshold: float = DEFAULT_THRESHOLD,
    data: str = "the user's samples",
    store: CalibrationStore | None = None,
    stop: threading.Event | None = None,
    strict: bool = False,
) -> Iterator[CalibrationProgress | Calibration]:
    """Measure the divergence at every K on `samples`, as `Calibrating` takes them: a `CalibrationProgress` for what is
    known already and for each of the others, the `Calibration` at the end.

    Setting `stop` ends it after the sample in hand, without a `Calibration`. Raises what `Calibrating` and `sweep` do.
    """
    calibrating = Calibrating(vlm, samples, threshold, data, store, strict)
    if calibrating.measured:
        yield calibrating.progress
    for measured in measure_samples(vlm, calibrating.left, stop):
        yield calibrating.keep(*measured)
    if not calibrating.left:
        yield calibrating.finish()


def measure_samples(
    vlm: VisionLanguageModel, samples: Sequence[Sample], stop: threading.Event | None = None
) -> Iterator[tuple[str, Measurement]]:
    """Each sample's fingerprint and divergence; setting `stop` ends it after the sample in hand."""
    for sample in samples:
        if stop is not None and stop.is_set():
            return
        prompt = vlm.prompt(sample.picture, sample.question)
        kl = on_model_thread(_divergence, vlm, prompt, sample.answer_tokens)
        yield sample.fingerprint, Measurement(kl, flops_left(vlm.model.config, prompt.length, prompt.visual_tokens))


def _divergence(vlm: VisionLanguageModel, prompt: Prompt, answer_tokens: int) -> tuple[float, ...]:
    """At K = 1 to L - 1, of the first of the answer's tokens, or the mean over several."""
    if answer_tokens == 1:
        return tuple(sweep(vlm.model, prompt.inputs).kl[0].tolist())
    with torch.inference_mode():
        answer = vlm.generate(**prompt.inputs, max_new_tokens=answer_tokens)[:, prompt.length :]
    swept = sweep(vlm.model, prompt.inputs, answer).answer_kl
    assert swept is not None
    return tuple(swept[0].mean(-1).tolist())
