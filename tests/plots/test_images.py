import os

import plotly.graph_objects as go
import pytest
from PIL import Image

from vtw_demo.plots.images import NO_BROWSER, write_png

HEIGHTS = {"up.png": [1, 2, 3], "down.png": [3, 2, 1]}


@pytest.fixture
def figures(tmp_path):
    return {tmp_path / name: go.Figure().add_scatter(x=[1, 2, 3], y=y) for name, y in HEIGHTS.items()}


def test_each_figure_is_drawn(figures):
    why_not = write_png(figures)
    if why_not and not os.environ.get("CI"):
        pytest.skip(why_not)
    assert why_not is None
    pictures = []
    for path in figures:
        with Image.open(path) as picture:
            assert (picture.format, picture.size) == ("PNG", (1200, 675))
            pictures.append(picture.convert("RGB"))
    assert pictures[0].getpixel((0, 0)) == (255, 255, 255)
    assert len(pictures[0].getcolors(1 << 24)) > 50
    assert pictures[0].tobytes() != pictures[1].tobytes()


@pytest.mark.parametrize("browser", ["/no/such/browser", "/bin/false"])
def test_without_a_browser_it_is_said_why(figures, monkeypatch, browser):
    monkeypatch.setenv("BROWSER_PATH", browser)
    assert write_png(figures) == NO_BROWSER
    assert not any(path.exists() for path in figures)
