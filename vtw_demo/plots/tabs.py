"""The one list of tabs, in the order in which they tell the story: page, report and exports read it.

To add a tab, write its module and name it here.
"""

from itertools import chain

from vtw_demo.comparison.analysis import Analysis
from vtw_demo.errors import UserError
from vtw_demo.plots import (
    attention,
    attention_map,
    differences,
    divergence,
    every_layer,
    migration,
    staircase,
    timing,
    words,
)
from vtw_demo.plots.tab import Plot, Tab, View

GROUPS: dict[str, tuple[Tab, ...]] = {
    "Why it works": (attention.TAB, attention_map.TAB, migration.TAB),
    "What it saves": (staircase.TAB, timing.TAB),
    "Which K": (divergence.TAB, every_layer.TAB, words.TAB),
    "Answers": (differences.TAB,),
}
TABS = tuple(chain.from_iterable(GROUPS.values()))


def all_plots(analysis: Analysis, view: View) -> tuple[tuple[Plot, ...], tuple[str, ...]]:
    """Every plot of a comparison, and sentences that say why others can't be made of this model. What isn't measured
    yet is measured."""
    made, missing = [], []
    for tab in TABS:
        try:
            if tab.is_of_comparison:
                made.append(tab.plot(analysis, view))
        except UserError as error:
            missing.append(str(error))
    return tuple(made), tuple(missing)
