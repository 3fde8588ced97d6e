"""What measurements were made on: machine, threads, and versions of what ran."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("vtw-demo", "torch", "transformers", "bitsandbytes", "gradio", "plotly")


@dataclass(frozen=True)
class Machine:
    """`accelerator` is the GPU's name, None without one; `versions` has (package, version) of what is installed."""

    system: str
    processor: str
    threads: int
    accelerator: str | None
    versions: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        device = self.accelerator or f"{self.processor}, {self.threads} threads"
        named = dict(self.versions)
        return f"{device}; {self.system}; torch {named['torch']}, transformers {named['transformers']}"

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {**asdict(self), "versions": dict(self.versions)}


def this_machine() -> Machine:
    """The machine that this process runs on."""
    return Machine(
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        processor=_processor(),
        threads=torch.get_num_threads(),
        accelerator=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        versions=tuple((name, version) for name in PACKAGES if (version := _version(name))),
    )


def _processor() -> str:
    """Its model's name where the system tells it; platform.processor() is empty on most Linux systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
