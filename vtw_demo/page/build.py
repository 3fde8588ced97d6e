"""The page, put together."""

from __future__ import annotations

import gradio as gr

from vtw_demo.page.callbacks import connect
from vtw_demo.page.engine import Engine
from vtw_demo.page.examples import load_examples
from vtw_demo.page.layout import lay_out


def build_page(engine: Engine, layer: int) -> gr.Blocks:
    """The page of the one model in `engine`, starting with the withdrawal layer `layer`; not yet launched."""
    examples = load_examples()
    vlm = engine.vlm
    with gr.Blocks(title="VTW Demo", analytics_enabled=False, fill_width=True) as page:
        layout = lay_out(examples, vlm.name, vlm.precision, str(vlm.device), vlm.layers, layer)
        connect(page, layout, engine, examples)
    return page
