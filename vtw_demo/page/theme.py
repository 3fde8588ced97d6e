"""How the page looks: fonts that every system has, so that it needs no network, and colours for light and dark."""

from __future__ import annotations

import gradio as gr

from vtw_demo.page.html import asset
from vtw_demo.plots.attention_map import ATTENTION_MAP_SCRIPT
from vtw_demo.plots.report import PLOTS_CSS

THEME = gr.themes.Base(
    primary_hue="blue",
    neutral_hue="slate",
    radius_size="md",
    spacing_size="sm",
    font=("system-ui", "sans-serif"),
    font_mono=("ui-monospace", "monospace"),
)

CSS = PLOTS_CSS + asset("page.css")
SCRIPTS = f"<script>{asset('keyboard_release.js')}{ATTENTION_MAP_SCRIPT}</script>"
