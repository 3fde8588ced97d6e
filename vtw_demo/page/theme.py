"""How the page looks: fonts that every system has, so that it needs no network, and colours for light and dark."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

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

CSS = PLOTS_CSS + (Path(__file__).parent / "page.css").read_text(encoding="utf-8")

# Gradio's slider says that it was let go of for a pointer only; this says so for keys too.
_KEYBOARD_RELEASE = """
document.addEventListener("keyup", (event) => {
  const keys = ["Enter", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "PageUp", "PageDown", "Home", "End"];
  if (keys.includes(event.key) && event.target.matches("#layer input"))
    event.target.dispatchEvent(new PointerEvent("pointerup", {bubbles: true}));
});
"""
SCRIPTS = f"<script>{_KEYBOARD_RELEASE}{ATTENTION_MAP_SCRIPT}</script>"
