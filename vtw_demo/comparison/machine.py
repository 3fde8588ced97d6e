"""What measurements were made on: machine, threads, and versions of what ran."""

import importlib.metadata
import platform
import subprocess
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

PACKAGES = ("vtw-demo", "torch", "transformers", "bitsandbytes", "gradio", "plotly")


@dataclass(frozen=True)
class Machine:
    """- `accelerator`: the GPU's name, None without one.
    - `clock_mhz`: of the GPU, else the processor, as it was when asked; None where it can't be told.
    - `versions`: of what is installed, by package; `commit`: of this project's checkout, None where it is none.
    """

    system: str
    processor: str
    threads: int
    accelerator: str | None
    clock_mhz: int | None
    versions: dict[str, str]
    commit: str | None

    def __str__(self) -> str:
        device = self.accelerator or f"{self.processor}, {self.threads} threads"
        clock = f" at {self.clock_mhz} MHz" if self.clock_mhz else ""
        commit = f"; commit {self.commit}" if self.commit else ""
        packages = ", ".join(f"{name} {self.versions[name]}" for name in ("torch", "transformers"))
        return f"{device}{clock}; {self.system}; {packages}{commit}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def this_machine() -> Machine:
    versions = {}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return Machine(
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        processor=_processor(),
        threads=torch.get_num_threads(),
        accelerator=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        clock_mhz=_clock(),
        versions=versions,
        commit=_commit(),
    )


def _clock() -> int | None:
    with suppress(RuntimeError, ImportError, OSError):  # NVIDIA's library isn't everywhere, nor what psutil reads
        if torch.cuda.is_available():
            return torch.cuda.clock_rate()
        frequency = psutil.cpu_freq()
        return round(frequency.current) if frequency and frequency.current else None
    return None


def _commit() -> str | None:
    """Of the checkout that this file lies in, with "+" where its files differ from it."""
    folder = Path(__file__).parent
    asked = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--exclude=*"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    return None


def _processor() -> str:
    """Its model's name where the system tells it; platform.processor() is empty on most Linux systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
