"""What a tab is: which parts of an analysis it needs, and the plot that it makes of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import plotly.graph_objects as go

from vtw_demo.comparison.analysis import Analysis, Part
from vtw_demo.comparison.calibration import DEFAULT_THRESHOLD, Calibration
from vtw_demo.plots.table import Table

AttentionQuery = Literal["last prompt token", "mean over the answer's tokens"] | int
"""Whose attention: a number is that of an answer token, counted from 0."""
LAST_PROMPT: AttentionQuery = "last prompt token"
ANSWER_MEAN: AttentionQuery = "mean over the answer's tokens"

Surface = Literal["tokens", "FLOPs", "KV cache bytes"]
"""What the staircase shows of each layer."""
SURFACES: tuple[Surface, ...] = get_args(Surface)


@dataclass(frozen=True)
class View:
    """What a reader has chosen in the tabs, and the model's calibration; None where it has none.

    `map_token`: the token of the answer whose attention map is shown, counted from 0; None: the last prompt position.
    """

    calibration: Calibration | None = None
    attention_query: AttentionQuery = LAST_PROMPT
    map_token: int | None = None
    surface: Surface = "tokens"

    @property
    def threshold(self) -> float:
        """Of the KL divergence."""
        return DEFAULT_THRESHOLD if self.calibration is None else self.calibration.threshold


@dataclass(frozen=True)
class Plot:
    """What is drawn, as a figure or as HTML; the sentence that reads it, and its numbers.

    `name` is that of its tab and its files; `table` makes the numbers' rows, of which there may be many.
    """

    name: str
    title: str
    reading: str
    table: Callable[[], Table]
    drawing: go.Figure | str


@dataclass(frozen=True)
class Tab:
    """One tab of the page, and section of the report.

    - `label`: as it stands on the tab.
    - `parts`: what has to be measured before, which depends on what is chosen.
    - `drawing`, `reading`, `table`: what the plot consists of, each made of the parts' results and of what is `chosen`.
    - `is_html`: it is drawn as HTML, not as a figure.
    - `is_of_comparison`: False where the tab's own button draws it, of runs of its own, which no report includes.
    """

    name: str
    label: str
    title: str
    drawing: Callable[..., go.Figure | str]
    reading: Callable[..., str]
    table: Callable[..., Table]
    parts: Callable[[View], tuple[Part, ...]] = lambda view: ()
    chosen: Callable[[Analysis, View], tuple[Any, ...]] = lambda analysis, view: ()
    is_html: bool = False
    is_of_comparison: bool = True

    def plot(self, analysis: Analysis, view: View) -> Plot:
        """Of an analysis; what isn't measured yet is measured. Raises UserError for what can't be shown of a model."""
        return self.plot_of(*self.measured(analysis, view))

    def measured(self, analysis: Analysis, view: View) -> tuple[Any, ...]:
        of_parts = (analysis.of(part.name, part.run, part.answer_token) for part in self.parts(view))
        return (*of_parts, *self.chosen(analysis, view))

    def plot_of(self, *measured: Any) -> Plot:
        drawing, table = self.drawing(*measured), partial(self.table, *measured)
        return Plot(self.name, self.title, self.reading(*measured), table, drawing)
