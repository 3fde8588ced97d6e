"""How long `python app.py` takes to its page, and the first comparison after that."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from gradio_client import handle_file

from vtw_demo.benchmark.app_process import PROJECT, app_process
from vtw_demo.benchmark.visitors import connect
from vtw_demo.comparison.timing import Ratio
from vtw_demo.models.loading import EMBEDDED

PICTURE = PROJECT / "assets" / "examples" / "two-shapes.png"


def measure_start(rounds: int, model: str = EMBEDDED, layer: int = 1, new_tokens: int = 16) -> tuple[Ratio, ...]:
    """Seconds from the start of a process to its page, and of the first comparison asked for through its API; then the
    same as a Space on free hardware, which takes the embedded model, at its first start.

    Raises OSError where the page doesn't come.
    """
    usual = [_start(["--model", model], {}, layer, new_tokens) for _ in range(rounds)]
    cold = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            cold.append(_start([], _new_space(folder), layer, new_tokens))
    return (
        Ratio("start of app.py to the page, in s", tuple(page for page, _ in usual), 8.0),
        Ratio("first comparison after that, in s", tuple(comparison for _, comparison in usual), 3.0),
        Ratio("start as a Space with nothing in any cache, in s", tuple(page for page, _ in cold)),
        Ratio("first comparison after that, too, in s", tuple(comparison for _, comparison in cold)),
    )


def _new_space(folder: str) -> dict[str, str]:
    """The environment of a Space without a GPU that has never run: each cache folder is empty, bytecode's as well."""
    names = ("HOME", "XDG_CACHE_HOME", "HF_HOME", "MPLCONFIGDIR", "PYTHONPYCACHEPREFIX", "GRADIO_TEMP_DIR")
    return {
        "SYSTEM": "spaces",
        "SPACE_ID": "user/name",
        "CUDA_VISIBLE_DEVICES": "",
        **{name: str(Path(folder) / name.lower()) for name in names},
    }


def _start(
    arguments: Sequence[str], environment: Mapping[str, str], layer: int, new_tokens: int
) -> tuple[float, float]:
    with app_process(arguments, environment) as app:
        client = connect(app.url)
        start = time.perf_counter()
        client.predict(handle_file(PICTURE), "What is the blue thing?", layer, new_tokens, api_name="/compare")
        return app.start_seconds, time.perf_counter() - start
