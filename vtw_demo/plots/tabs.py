"""The one list of tabs, in the order in which they tell the story: page, report and exports read it."""

from itertools import chain

from vtw_demo.comparison.analysis import Analysis
from vtw_demo.errors import UserError
from vtw_demo.models.video import contact_sheet
from vtw_demo.plots.attention import attention_figure, attention_reading, attention_table
from vtw_demo.plots.attention_map import attention_map_html, attention_map_reading, attention_map_table
from vtw_demo.plots.differences import differences_html, differences_reading, differences_table
from vtw_demo.plots.divergence import divergence_figure, divergence_reading, divergence_table
from vtw_demo.plots.every_layer import answer_times_figure, answer_times_table, stable_sentence
from vtw_demo.plots.migration import migration_figure, migration_reading, migration_table
from vtw_demo.plots.published_attention import published_lines
from vtw_demo.plots.second_question import (
    second_question_html,
    second_question_reading,
    second_question_table,
)
from vtw_demo.plots.staircase import staircase_figure, staircase_reading, staircase_table
from vtw_demo.plots.tab import Plot, Tab, View
from vtw_demo.plots.timing import timing_figure, timing_reading, timing_table
from vtw_demo.plots.words import words_figure, words_reading, words_table

GROUPS: dict[str, tuple[Tab, ...]] = {
    "Why it works": (
        Tab(
            "Attention",
            "Where attention goes",
            (attention_figure, attention_reading, attention_table),
            ("attention",),
            lambda analysis, view: (view.attention_query, view.attention_quantity, published_lines(analysis.vlm)),
        ),
        Tab(
            "Where it looks",
            "Where it looks",
            (
                attention_map_html,
                lambda geometry, maps, picture, quantity: attention_map_reading(maps, quantity),
                lambda geometry, maps, picture, quantity: attention_map_table(geometry, maps),
            ),
            ("patches", "attention_maps"),
            lambda analysis, view: (contact_sheet(analysis.prompt.shown), view.map_quantity),
            is_html=True,
        ),
        Tab(
            "Migration",
            "How the picture's content moves into the text",
            (migration_figure, migration_reading, migration_table),
            ("migration",),
        ),
    ),
    "What it saves": (
        Tab(
            "Staircase",
            "What is left in each layer",
            (
                staircase_figure,
                lambda stairs, times, surface: staircase_reading(stairs, times),
                lambda stairs, times, surface: staircase_table(stairs, times),
            ),
            ("staircase", "layer_times"),
            lambda analysis, view: (view.surface,),
        ),
        Tab(
            "Timing",
            "Where time goes",
            (timing_figure, timing_reading, timing_table),
            chosen=lambda analysis, view: (analysis.comparison, analysis.timing),
        ),
    ),
    "Which K": (
        Tab(
            "Choose K",
            "How far withdrawal at each K moves the next token",
            (divergence_figure, divergence_reading, divergence_table),
            ("sweep",),
            lambda analysis, view: (view.calibration,),
        ),
        Tab(
            "Every K",
            "What an answer costs at each K",
            (answer_times_figure, stable_sentence, answer_times_table),
            is_there=lambda analysis: False,
        ),
        Tab(
            "Word by word",
            "Which words still need the picture, in which layers",
            (
                lambda query, threshold: words_figure(query),
                words_reading,
                lambda query, threshold: words_table(query),
            ),
            ("sweep",),
            lambda analysis, view: (view.threshold,),
        ),
    ),
    "Answers": (
        Tab(
            "Differences",
            "Where the answers part",
            (differences_html, differences_reading, differences_table),
            ("probabilities",),
            is_html=True,
        ),
        Tab(
            "Second question",
            "What a second question is answered with what was kept",
            (second_question_html, second_question_reading, second_question_table),
            chosen=lambda analysis, view: (analysis.follow_up,),
            is_html=True,
            is_there=lambda analysis: analysis.follow_up is not None,
        ),
    ),
}
TABS = tuple(chain.from_iterable(GROUPS.values()))


def all_plots(analysis: Analysis, view: View) -> tuple[tuple[Plot, ...], tuple[str, ...]]:
    """Every plot of a comparison, measured where it isn't yet, and sentences that say why others can't be made."""
    made, missing = [], []
    for tab in TABS:
        try:
            if tab.is_there(analysis):
                made.append(tab.plot(analysis, view))
        except UserError as error:
            missing.append(str(error))
    return tuple(made), tuple(missing)
