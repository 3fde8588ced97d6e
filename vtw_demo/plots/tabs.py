"""The plots of an examined comparison, each with its sentence and its numbers: what page, report and exports show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import plotly.graph_objects as go

from vtw_demo.comparison.analysis import Examination
from vtw_demo.comparison.calibration import DEFAULT_THRESHOLD, Calibration
from vtw_demo.comparison.every_layer import LayerAnswer
from vtw_demo.comparison.timed_generate import Run
from vtw_demo.errors import UserError
from vtw_demo.models.video import contact_sheet
from vtw_demo.plots.attention import (
    LAST_PROMPT,
    AttentionQuery,
    attention_figure,
    attention_reading,
    attention_table,
)
from vtw_demo.plots.attention_map import (
    attention_map_html,
    attention_map_reading,
    attention_map_table,
)
from vtw_demo.plots.attention_map import attention_map_png as map_png
from vtw_demo.plots.differences import differences_html, differences_reading, differences_table
from vtw_demo.plots.divergence import (
    divergence_figure,
    divergence_reading,
    divergence_table,
    words_figure,
    words_reading,
    words_table,
)
from vtw_demo.plots.every_layer import answer_times_figure, answer_times_table, stable_sentence
from vtw_demo.plots.migration import migration_figure, migration_reading, migration_table
from vtw_demo.plots.staircase import Surface, staircase_figure, staircase_reading, staircase_table
from vtw_demo.plots.table import Table
from vtw_demo.plots.timing import timing_figure, timing_reading, timing_table


@dataclass(frozen=True)
class Plot:
    """What is drawn, as a figure or as HTML, the sentence that reads it, and its numbers.

    `name` is that of its files; `table` makes the numbers' rows, of which there may be many. Raises ValueError unless
    there is either a figure or HTML.
    """

    name: str
    title: str
    reading: str
    table: Callable[[], Table]
    figure: go.Figure | None = None
    html: str = ""

    def __post_init__(self) -> None:
        if (self.figure is None) == (not self.html):
            raise ValueError(f"The plot {self.name!r} must be a figure or HTML, one of the two.")


def attention_plot(examination: Examination, query: AttentionQuery = LAST_PROMPT) -> Plot:
    masses = examination.full.attention, examination.attention
    return Plot(
        "attention",
        "Where attention goes",
        attention_reading(*masses, query),
        partial(attention_table, *masses, query),
        attention_figure(*masses, query),
    )


def attention_map_plot(examination: Examination, answer_token: int | None = None) -> Plot:
    """For the last prompt position, or for a token of the answers. It opens at the layer before the withdrawal."""
    full, geometry = examination.full, examination.full.patches
    maps = full.attention_map(answer_token), examination.attention_map(answer_token)
    return Plot(
        "where-it-looks",
        "Where it looks",
        attention_map_reading(*maps),
        partial(attention_map_table, geometry, *maps),
        html=attention_map_html(contact_sheet(full.image), geometry, *maps, first_layer=examination.layer - 1),
    )


def attention_map_png(examination: Examination, answer_token: int | None = None) -> bytes:
    """The maps of `attention_map_plot` on one sheet, as a PNG file."""
    full = examination.full
    maps = full.attention_map(answer_token), examination.attention_map(answer_token)
    return map_png(contact_sheet(full.image), full.patches, *maps)


def migration_plot(examination: Examination) -> Plot:
    migration = examination.migration
    return Plot(
        "migration",
        "How the picture's content moves into the text",
        migration_reading(migration),
        partial(migration_table, migration),
        migration_figure(migration),
    )


def staircase_plot(examination: Examination, surface: Surface = "tokens") -> Plot:
    parts = examination.staircase, examination.layer_times
    return Plot(
        "staircase",
        "What is left in each layer",
        staircase_reading(*parts),
        partial(staircase_table, *parts),
        staircase_figure(*parts, surface),
    )


def timing_plot(examination: Examination) -> Plot:
    parts = examination.comparison, examination.timing
    return Plot(
        "timing", "Where time goes", timing_reading(*parts), partial(timing_table, *parts), timing_figure(*parts)
    )


def divergence_plot(examination: Examination, calibration: Calibration | None) -> Plot:
    parts = calibration, examination.full.sweep
    return Plot(
        "choose-k",
        "How far withdrawal at each K moves the next token",
        divergence_reading(*parts),
        partial(divergence_table, *parts),
        divergence_figure(*parts),
    )


def words_plot(examination: Examination, calibration: Calibration | None) -> Plot:
    swept = examination.full.sweep
    return Plot(
        "word-by-word",
        "Which words still need the picture, in which layers",
        words_reading(swept, DEFAULT_THRESHOLD if calibration is None else calibration.threshold),
        partial(words_table, swept),
        words_figure(swept),
    )


def differences_plot(examination: Examination) -> Plot:
    probabilities = examination.probabilities
    return Plot(
        "differences",
        "Where the answers part",
        differences_reading(probabilities),
        partial(differences_table, probabilities),
        html=differences_html(probabilities),
    )


def answers_plot(full: Run, answers: Sequence[LayerAnswer]) -> Plot:
    """Of the answers at every K of a range, which no report includes: they are runs of their own."""
    return Plot(
        "every-k",
        "What an answer costs at each K",
        stable_sentence(full, answers),
        partial(answer_times_table, full, answers),
        answer_times_figure(full, answers),
    )


def all_plots(examination: Examination, calibration: Calibration | None) -> tuple[tuple[Plot, ...], tuple[str, ...]]:
    """Every plot of a comparison, in the order in which they tell the story, and sentences that say why others can't be
    made of this model. What isn't measured yet is measured."""
    makers = (
        lambda: attention_plot(examination),
        lambda: attention_map_plot(examination),
        lambda: migration_plot(examination),
        lambda: staircase_plot(examination),
        lambda: timing_plot(examination),
        lambda: divergence_plot(examination, calibration),
        lambda: words_plot(examination, calibration),
        lambda: differences_plot(examination),
    )
    made, missing = [], []
    for make in makers:
        try:
            made.append(make())
        except UserError as error:
            missing.append(str(error))
    return tuple(made), tuple(missing)
