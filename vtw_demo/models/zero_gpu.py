"""ZeroGPU: hardware of Hugging Face Spaces that lends a GPU to a function for as long as it runs."""

from __future__ import annotations

import os


def on_zero_gpu() -> bool:
    """Whether this process runs there, found out as the package `spaces` does."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
