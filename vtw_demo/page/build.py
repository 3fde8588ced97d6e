"""The page, put together."""

import gradio as gr

from vtw_demo.page.api import connect_api
from vtw_demo.page.asking import Asking
from vtw_demo.page.examples import load_examples
from vtw_demo.page.html import asset
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
from vtw_demo.plots.tabs import GROUPS, TABS
from vtw_demo.server.engine import Engine
from vtw_demo.server.guarded_blocks import GuardedBlocks
from vtw_demo.server.switching import Switching
from vtw_demo.withdrawal.withdraw import check_layer

# The tabs with controls of their own. One that is a plot alone needs nothing here: its module in `vtw_demo.plots` and
# its line in `TABS` say all of it.
WITH_CONTROLS: dict[str, type[PlottedTab]] = {
    attention.TAB.name: AttentionTab,
    attention_map.TAB.name: AttentionMapTab,
    staircase.TAB.name: StaircaseTab,
    timing.TAB.name: TimingTab,
    divergence.TAB.name: ChooseKTab,
    every_layer.TAB.name: EveryKTab,
}


def build_page(engine: Engine, first_layer: int | None = None, switching: Switching | None = None) -> GuardedBlocks:
    """The page of the one model in `engine`, not yet launched.

    It starts with the withdrawal layer `first_layer`; None takes the calibrated one or, where there is none, the
    registry's or the default. With `switching`, visitors may put another model in its place. Raises UserError for a
    layer that the model hasn't.
    """
    examples = load_examples()
    if first_layer is not None:
        check_layer(first_layer, engine.vlm.layers)
    with GuardedBlocks(
        engine.monitoring, lambda: engine.turns.is_closing, title="VTW Demo", analytics_enabled=False, fill_width=True
    ) as blocks:
        page = Page(engine, examples, first_layer)
        groups = {title: [tab.name for tab in tabs] for title, tabs in GROUPS.items()}
        groups["Session"] = [HistoryTab.name, TakeAwayTab.name]
        gr.HTML(html_template="", js_on_load=asset("groups.js"), groups=groups, visible="hidden")
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as page.tab_bar:
            page.tabs = [WITH_CONTROLS.get(tab.name, PlottedTab)(page, tab) for tab in TABS]
            page.tabs += [HistoryTab(page), TakeAwayTab(page)]
        if switching is not None:
            page.tabs.append(ModelTab(page, switching))
        Asking(page, examples).connect(blocks.load)
        for tab in page.tabs:
            tab.connect()
        connect_api(engine, blocks.uploads)
    # On a Space, Gradio would put a header over the page whose fonts and pictures come from other hosts.
    blocks.space_id = None
    return blocks
