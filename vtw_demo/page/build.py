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
from vtw_demo.page.tabs.second_question import SecondQuestionTab
from vtw_demo.page.tabs.staircase import StaircaseTab
from vtw_demo.page.tabs.tab import PlottedTab
from vtw_demo.page.tabs.take_away import TakeAwayTab
from vtw_demo.page.tabs.timing import TimingTab
from vtw_demo.page.upgrade_line import UpgradeLine
from vtw_demo.plots.tabs import GROUPS, TABS
from vtw_demo.server.engine import Engine
from vtw_demo.server.guarded_blocks import GuardedBlocks
from vtw_demo.server.switching import Switching
from vtw_demo.server.upgrade import Upgrade
from vtw_demo.withdrawal.withdraw import check_layer

# The tabs with controls of their own. One that is a plot alone needs nothing here: its entry in `TABS` says all of it.
WITH_CONTROLS: dict[str, type[PlottedTab]] = {
    "attention": AttentionTab,
    "where-it-looks": AttentionMapTab,
    "staircase": StaircaseTab,
    "timing": TimingTab,
    "choose-k": ChooseKTab,
    "every-k": EveryKTab,
    "second-question": SecondQuestionTab,
}


def build_page(
    engine: Engine,
    first_layer: int | None = None,
    switching: Switching | None = None,
    upgrade: Upgrade | None = None,
) -> GuardedBlocks:
    """The page of the one model in `engine`, not yet launched. With `switching`, visitors may put another model in its
    place, and decide about `upgrade`, which does. Raises UserError for a `first_layer` that the model hasn't."""
    examples = load_examples()
    if first_layer is not None:
        check_layer(first_layer, engine.vlm.layers)
    with GuardedBlocks(
        engine.monitoring, lambda: engine.turns.is_closing, title="VTW Demo", analytics_enabled=False, fill_width=True
    ) as blocks:
        page = Page(engine, examples, first_layer, upgrade)
        groups = {title: [tab.name for tab in tabs] for title, tabs in GROUPS.items()}
        groups["Session"] = [HistoryTab.name, TakeAwayTab.name]
        gr.HTML(html_template="", js_on_load=asset("groups.js"), groups=groups, visible="hidden")
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as page.tab_bar:
            page.tabs = [WITH_CONTROLS.get(tab.name, PlottedTab)(page, tab) for tab in TABS]
            page.tabs += [HistoryTab(page), TakeAwayTab(page)]
        if switching is not None:
            page.tabs.append(ModelTab(page, switching))
        Asking(page, examples).connect(blocks.load)
        if upgrade is not None:
            UpgradeLine(page, upgrade, examples, switching is not None).connect(blocks.load)
        for tab in page.tabs:
            tab.connect()
        connect_api(engine, blocks.uploads)
    # On a Space, Gradio would put a header over the page whose fonts and pictures come from other hosts.
    blocks.space_id = None
    return blocks
