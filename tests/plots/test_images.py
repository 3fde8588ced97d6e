import os

import plotly.graph_objects as go
import pytest
from PIL import Image

from vtw_demo.plots.images import NO_BROWSER, write_results

HEIGHTS = {"up.png": [1, 2, 3], "down.png": [3, 2, 1]}


@pytest.fixture
def figures():
    return {name: go.Figure().add_scatter(x=[1, 2, 3], y=y) for name, y in HEIGHTS.items()}


def test_each_figure_is_drawn(figures, tmp_path, capsys):
    write_results(tmp_path, {}, figures)
    said = capsys.readouterr()
    if said.err and not os.environ.get("CI"):
        pytest.skip(said.err)
    assert said.out.splitlines() == [str(tmp_path / name) for name in figures]
    pictures = []
    for name in figures:
        with Image.open(tmp_path / name) as picture:
            assert (picture.format, picture.size) == ("PNG", (1200, 675))
            pictures.append(picture.convert("RGB"))
    assert pictures[0].getpixel((0, 0)) == (255, 255, 255)
    assert len(pictures[0].getcolors(1 << 24)) > 50
    assert pictures[0].tobytes() != pictures[1].tobytes()


@pytest.mark.parametrize("browser", ["/no/such/browser", "/bin/false"])
def test_without_a_browser_it_is_said_why_and_the_rest_is_written(figures, monkeypatch, tmp_path, capsys, browser):
    monkeypatch.setenv("BROWSER_PATH", browser)
    write_results(tmp_path / "new", {"a.txt": "Größe"}, figures)
    assert capsys.readouterr() == (f"{tmp_path / 'new' / 'a.txt'}\n", f"{NO_BROWSER}\n")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "Größe"
