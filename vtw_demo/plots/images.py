"""Pictures within a page, as data URIs; figures as PNG files, drawn by this machine's Chrome, which kaleido drives."""

import base64
import io
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io
from PIL import Image, ImageOps

from vtw_demo.files import write_whole

NO_BROWSER = (
    "PNG files are left out, for there is no Chrome or Chromium that could draw them: install one, or run "
    "`plotly_get_chrome`."
)


def data_uri(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def image_uri(image: Image.Image, kind: str, **options: Any) -> str:
    """`kind`: "png" or "jpeg"; `options` are Pillow's."""
    content = io.BytesIO()
    image.save(content, kind, **options)
    return data_uri(content.getvalue(), f"image/{kind}")


def thumbnail(picture: Image.Image, longest_side: int) -> Image.Image:
    """Upright, in RGB, no side longer than `longest_side` pixels."""
    shown = ImageOps.exif_transpose(picture).convert("RGB")
    shown.thumbnail((longest_side, longest_side))
    return shown


def write_results(folder: Path, contents: Mapping[str, str], figures: Mapping[str, go.Figure]) -> None:
    """Write texts, and figures as PNG files of 1,200 by 675 pixels, and print where; no figure, and why, on the error
    stream, where this machine draws none."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_whole(folder / name, content.encode())
        print(folder / name)
    with tempfile.TemporaryDirectory() as elsewhere:
        drawn = [Path(elsewhere, f"{number}.png") for number in range(len(figures))]
        on_white = [go.Figure(figure).update_layout(paper_bgcolor="white") for figure in figures.values()]
        try:
            plotly.io.write_images(on_white, drawn, width=800, height=450, scale=1.5)
        except (RuntimeError, TimeoutError):  # kaleido's, without a browser and with one that doesn't start
            print(NO_BROWSER, file=sys.stderr)
            return
        for name, file in zip(figures, drawn, strict=True):
            write_whole(folder / name, file.read_bytes())
            print(folder / name)
