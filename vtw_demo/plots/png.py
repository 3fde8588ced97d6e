"""Figures as PNG files, drawn by the Chrome or Chromium of this machine, which kaleido drives."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import plotly.graph_objects as go
import plotly.io

from vtw_demo.files import write_whole

NO_BROWSER = (
    "PNG files are left out, for there is no Chrome or Chromium that could draw them: install one, or run "
    "`plotly_get_chrome`."
)


def write_png(figures: Mapping[Path, go.Figure]) -> str | None:
    """Write each figure to its file, 1,200 by 675 pixels; or none of them, and give a sentence that says why and what
    to do."""
    with tempfile.TemporaryDirectory() as folder:
        drawn = [Path(folder, f"{number}.png") for number in range(len(figures))]
        on_white = [go.Figure(figure).update_layout(paper_bgcolor="white") for figure in figures.values()]
        try:
            plotly.io.write_images(on_white, drawn, width=800, height=450, scale=1.5)
        except (RuntimeError, TimeoutError):  # kaleido's, without a browser and with one that doesn't start
            return NO_BROWSER
        for path, file in zip(figures, drawn, strict=True):
            write_whole(path, file.read_bytes())
    return None
