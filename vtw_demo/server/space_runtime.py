"""Running as a Hugging Face Space, which says in environment variables where it listens and what it may use."""

from __future__ import annotations

import os

import torch

EVERYWHERE = "0.0.0.0"


def on_space() -> bool:
    return bool(os.environ.get("SPACE_ID"))


def space_host() -> str | None:
    """The address to listen on as a Space, whose visitors come from outside its container; None elsewhere."""
    return os.environ.get("GRADIO_SERVER_NAME") or EVERYWHERE if on_space() else None


def use_own_cores() -> None:
    """Let torch compute in as many threads as the Space has processors, not its machine; nothing elsewhere."""
    cores = os.environ.get("CPU_CORES", "")
    if on_space() and cores.isdecimal() and int(cores):
        torch.set_num_threads(min(int(cores), torch.get_num_threads()))
