"""What measurements were made on: machine, threads, and versions of what ran."""

import importlib.metadata
import platform
import re
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from vtw_demo.formats import PlainData

PACKAGES = ("vtw-demo", "torch", "transformers", "bitsandbytes", "gradio", "plotly")


@dataclass(frozen=True)
class Machine(PlainData):
    system: str
    processor: str
    threads: int
    accelerator: str | None  # the GPU's name
    clock_mhz: int | None  # of the GPU, else the processor, as it was when asked; None where it can't be told
    versions: dict[str, str]  # of what is installed, by package
    commit: str | None  # of this project's checkout, None where it is none

    def __str__(self) -> str:
        device = self.accelerator or f"{self.processor}, {self.threads} threads"
        clock = f" at {self.clock_mhz} MHz" if self.clock_mhz else ""
        commit = f"; commit {self.commit}" if self.commit else ""
        packages = ", ".join(f"{name} {self.versions[name]}" for name in ("torch", "transformers"))
        return f"{device}{clock}; {self.system}; {packages}{commit}"


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
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    return None


def _processor() -> str:
    """Its model's name where the system tells it; platform.processor() is empty on most Linux systems."""
    with suppress(OSError):
        if named := re.search(r"(?m)^model name\s*:(.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8")):
            return named[1].strip()
    return platform.processor() or platform.machine()
