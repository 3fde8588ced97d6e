"""The tabs under the answers, each with its controls, their events and what these call.

A tab that is a plot alone needs nothing here: its module in `vtw_demo.plots` and its line in `TABS` say all of it.
"""

from __future__ import annotations

import gradio as gr

from vtw_demo.page.page import Page
from vtw_demo.page.tabs.attention import AttentionMapTab, AttentionTab
from vtw_demo.page.tabs.choose_k import ChooseKTab
from vtw_demo.page.tabs.every_k import EveryKTab
from vtw_demo.page.tabs.history import HistoryTab
from vtw_demo.page.tabs.model import ModelTab
from vtw_demo.page.tabs.staircase import StaircaseTab
from vtw_demo.page.tabs.tab import PlottedTab
from vtw_demo.page.tabs.take_away import TakeAwayTab
from vtw_demo.page.tabs.timing import TimingTab
from vtw_demo.plots import attention, attention_map, divergence, every_layer, staircase, timing
from vtw_demo.plots.tabs import TABS
from vtw_demo.server.switching import Switching

# Those with controls of their own.
WITH_CONTROLS: dict[str, type[PlottedTab]] = {
    attention.TAB.name: AttentionTab,
    attention_map.TAB.name: AttentionMapTab,
    staircase.TAB.name: StaircaseTab,
    timing.TAB.name: TimingTab,
    divergence.TAB.name: ChooseKTab,
    every_layer.TAB.name: EveryKTab,
}


def lay_out_tabs(page: Page, switching: Switching | None) -> None:
    """Make the tabs, inside a `gr.Blocks`. `switching` is None where the model stays the same."""
    with gr.Tabs(elem_id="tabs") as page.tab_bar:
        page.tabs = [WITH_CONTROLS.get(tab.name, PlottedTab)(page, tab) for tab in TABS]
        page.tabs += [HistoryTab(page), TakeAwayTab(page)]
        if switching is not None:
            page.tabs.append(ModelTab(page, switching))
