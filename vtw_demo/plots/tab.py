"""What a tab is: which parts of an analysis it needs, and the plot that it makes of them."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import plotly.graph_objects as go

from vtw_demo.comparison.analysis import MEASUREMENTS, Analysis, Part
from vtw_demo.comparison.calibration import DEFAULT_THRESHOLD, Calibration
from vtw_demo.comparison.compare import Comparison

AttentionQuery = Literal["last prompt token", "mean over the answer's tokens"] | int
"""Whose attention: a number is that of an answer token, counted from 0."""
LAST_PROMPT: AttentionQuery = "last prompt token"
ANSWER_MEAN: AttentionQuery = "mean over the answer's tokens"

Quantity = Literal["attention", "attention × value norm", "cosine without picture"]
"""What is shown of it: `AttentionMass` says what each is."""
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
ATTENTION, CONTRIBUTION, COSINE = QUANTITIES

Surface = Literal["tokens", "FLOPs", "KV cache bytes"]
SURFACES: tuple[Surface, ...] = get_args(Surface)


@dataclass(frozen=True)
class View:
    """What a reader has chosen in the tabs, and the model's calibration."""

    calibration: Calibration | None = None
    attention_query: AttentionQuery = LAST_PROMPT
    attention_quantity: Quantity = ATTENTION
    map_token: int | None = None  # whose attention map is shown, counted from 0; None: the last prompt position's
    map_quantity: Quantity = ATTENTION
    surface: Surface = "tokens"

    @property
    def threshold(self) -> float:
        return DEFAULT_THRESHOLD if self.calibration is None else self.calibration.threshold


Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Table:
    """Rows under named columns; names of measured columns end with their unit, as in "prefill (ms)"."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def to_csv(self) -> str:
        """Comma-separated, with a header line; empty where a cell is None."""
        written = io.StringIO()
        csv.writer(written, lineterminator="\n").writerows([self.columns, *self.rows])
        return written.getvalue()


@dataclass(frozen=True)
class Plot:
    """What is drawn, as a figure or as HTML, the sentence that reads it, and its numbers."""

    name: str  # of its tab and its files
    title: str
    reading: str
    table: Callable[[], Table]  # which makes them, as they may be many
    drawing: go.Figure | str


@dataclass(frozen=True)
class Tab:
    """One tab of the page, and section of the report. `make` gives the plot's drawing, reading and table, of the
    measured `rows` of the table of measurements and of what is `chosen`."""

    label: str
    title: str
    make: tuple[Callable[..., go.Figure | str], Callable[..., str], Callable[..., Table]]
    rows: tuple[str, ...] = ()
    chosen: Callable[[Analysis, View], tuple[Any, ...]] = lambda analysis, view: ()
    is_html: bool = False
    # Whether an analysis has what it draws: not where its own button makes that, or hasn't yet.
    is_there: Callable[[Analysis], bool] = lambda analysis: True

    @property
    def name(self) -> str:
        return self.label.lower().replace(" ", "-")

    def parts(self, comparison: Comparison, view: View) -> tuple[Part, ...]:
        return tuple(part for row in self.rows for part in MEASUREMENTS[row].parts(comparison, view.map_token))

    def plot(self, analysis: Analysis, view: View) -> Plot:
        """Of an analysis; what isn't measured yet is measured. Raises UserError for what can't be shown of a model."""
        return self.plot_of(*self.measured(analysis, view))

    def measured(self, analysis: Analysis, view: View) -> tuple[Any, ...]:
        """What `make` gets: rows that are measured of each run by run."""
        rows = (MEASUREMENTS[name] for name in self.rows)
        measured = (
            analysis.of_runs(row.name, view.map_token if row.by_token else None)
            if row.of_each_run
            else analysis.of(row.name)
            for row in rows
        )
        return (*measured, *self.chosen(analysis, view))

    def plot_of(self, *measured: Any) -> Plot:
        draw, read, tabulate = self.make
        return Plot(self.name, self.title, read(*measured), partial(tabulate, *measured), draw(*measured))
