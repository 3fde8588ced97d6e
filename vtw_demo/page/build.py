"""The page, put together."""

from __future__ import annotations

from vtw_demo.page.api import connect_api
from vtw_demo.page.asking import Asking
from vtw_demo.page.examples import load_examples
from vtw_demo.page.page import Page
from vtw_demo.page.tabs import lay_out_tabs
from vtw_demo.server.engine import Engine
from vtw_demo.server.guarded_blocks import GuardedBlocks
from vtw_demo.server.switching import Switching
from vtw_demo.withdrawal.withdraw import check_layer


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
        lay_out_tabs(page, switching)
        Asking(page, examples).connect(blocks.load)
        for tab in page.tabs:
            tab.connect()
        connect_api(engine)
    # On a Space, Gradio would put a header over the page whose fonts and pictures come from other hosts.
    blocks.space_id = None
    return blocks
