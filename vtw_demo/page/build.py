"""The page, put together."""

from __future__ import annotations

from vtw_demo.models.registry import starting_layer
from vtw_demo.page.bindings import connect
from vtw_demo.page.examples import load_examples
from vtw_demo.page.layout import default_layer, lay_out
from vtw_demo.server.engine import Engine
from vtw_demo.server.guarded_blocks import GuardedBlocks
from vtw_demo.server.switching import Switching
from vtw_demo.withdrawal.withdraw import check_layer


def build_page(engine: Engine, first_layer: int | None = None, switching: Switching | None = None) -> GuardedBlocks:
    """The page of the one model in `engine`, not yet launched.

    It starts with the withdrawal layer `first_layer`; None takes the calibrated one or, where there is none, the
    registry's or the default. With `switching`, visitors may put another model in its place. Raises ValueError for a
    layer that the model hasn't.
    """
    examples, vlm = load_examples(), engine.vlm
    layer = default_layer(starting_layer(vlm), engine.calibration) if first_layer is None else first_layer
    check_layer(layer, vlm.layers)
    with GuardedBlocks(
        engine.monitoring, lambda: engine.turns.is_closing, title="VTW Demo", analytics_enabled=False, fill_width=True
    ) as page:
        layout = lay_out(examples, vlm, layer, engine.calibration, switchable=switching is not None)
        connect(page, layout, engine, examples, first_layer, switching)
    # On a Space, Gradio would put a header over the page whose fonts and pictures come from other hosts.
    page.space_id = None
    return page
