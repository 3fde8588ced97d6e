"""The page, put together."""

from __future__ import annotations

import gradio as gr

from vtw_demo.page.bindings import connect
from vtw_demo.page.engine import Engine
from vtw_demo.page.examples import load_examples
from vtw_demo.page.layout import default_layer, lay_out
from vtw_demo.withdrawal import check_layer


def build_page(engine: Engine, first_layer: int | None = None) -> gr.Blocks:
    """The page of the one model in `engine`, not yet launched.

    It starts with the withdrawal layer `first_layer`; None takes the calibrated one or, where there is none, the
    default. Raises ValueError for one that the model hasn't.
    """
    examples, vlm = load_examples(), engine.vlm
    layer = default_layer(vlm.layers, engine.calibration) if first_layer is None else first_layer
    check_layer(layer, vlm.layers)
    with gr.Blocks(title="VTW Demo", analytics_enabled=False, fill_width=True) as page:
        layout = lay_out(examples, vlm.name, vlm.precision, str(vlm.device), vlm.layers, layer, engine.calibration)
        connect(page, layout, engine, examples, first_layer)
    return page
