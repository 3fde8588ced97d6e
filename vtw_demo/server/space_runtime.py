"""What a Space says in environment variables: where it listens, and what it may use."""

import os

import torch

from vtw_demo.server.listening import EVERYWHERE, HERE


def on_space() -> bool:
    return bool(os.environ.get("SPACE_ID"))


def default_host() -> str:
    """Where to listen. A Space's visitors come from outside its container."""
    return os.environ.get("GRADIO_SERVER_NAME") or (EVERYWHERE if on_space() else HERE)


def use_own_cores() -> None:
    """Let torch compute in as many threads as the Space has processors, not its machine; nothing elsewhere."""
    cores = os.environ.get("CPU_CORES", "")
    if on_space() and cores.isdecimal() and int(cores):
        torch.set_num_threads(min(int(cores), torch.get_num_threads()))
