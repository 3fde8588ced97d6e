"""How the page looks: fonts that every system has, so that it needs no network, and colours for light and dark."""

from __future__ import annotations

import gradio as gr

THEME = gr.themes.Base(
    primary_hue="blue",
    neutral_hue="slate",
    radius_size="md",
    spacing_size="sm",
    font=("system-ui", "sans-serif"),
    font_mono=("ui-monospace", "monospace"),
)

CSS = """
.gradio-container {max-width: 1560px !important; margin: 0 auto; padding: 12px 16px !important;}
.header {display: flex; flex-wrap: wrap; align-items: baseline; gap: 2px 14px;}
.header h1 {font-size: 22px; font-weight: 700; margin: 0;}
.header p {margin: 0; color: var(--body-text-color-subdued);}
.header .facts {display: flex; flex-wrap: wrap; gap: 6px; margin-left: auto;}
.header .facts span {border: 1px solid var(--border-color-primary); border-radius: 999px; padding: 1px 10px;
  font-size: 12px; color: var(--body-text-color-subdued);}
.verdict {margin: 0; padding: 10px 14px; border-radius: 8px; font-size: 18px; font-weight: 600; line-height: 1.35;
  border-left: 5px solid #009E73; background: var(--background-fill-secondary);}
.verdict.progress {border-color: #56B4E9; font-weight: 400; color: var(--body-text-color-subdued);}
.verdict.problem {border-color: #D55E00;}
.answer-card {border: 1px solid var(--border-color-primary); border-top: 4px solid #8A8F98; border-radius: 8px;
  padding: 10px 14px; height: 100%; background: var(--background-fill-primary);}
.answer-card.withdrawn {border-top-color: #D55E00;}
.answer-card h3 {margin: 0; font-size: 14px; font-weight: 600; color: var(--body-text-color-subdued);}
.answer-card .answer {margin: 6px 0 8px; min-height: 30px; font-size: 20px; line-height: 1.4; font-weight: 500;
  overflow-wrap: anywhere; max-height: 170px; overflow-y: auto;}
.answer-card.running .answer::after {content: "▍"; opacity: .6;}
.answer-card .progress {margin: 0; font-size: 12px; color: var(--body-text-color-subdued);}
.figures {display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 6px 12px; margin: 0;}
.figures dt {font-size: 11px; color: var(--body-text-color-subdued);}
.figures dd {margin: 0; font-size: 15px; font-weight: 600; font-variant-numeric: tabular-nums;}
.live p {margin: 0; font-size: 13px;}
.live h4 {margin: 4px 0 2px; font-size: 11px; font-weight: 400; color: var(--body-text-color-subdued);}
.live .tokens {display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 0 12px;}
.live ol {list-style: none; margin: 0; padding: 0;}
.live li {position: relative; display: flex; justify-content: space-between; gap: 6px; font-size: 12px;
  line-height: 1.5; padding: 0 4px; font-variant-numeric: tabular-nums; margin: 0;}
.live .bar {position: absolute; inset: 1px auto 1px 0; background: #56B4E9; opacity: .3; border-radius: 2px;}
.live .token {overflow: hidden; text-overflow: ellipsis; white-space: nowrap;}
.answers-table {width: 100%; border-collapse: collapse; border: 0 !important; font-size: 13px;}
.answers-table th, .answers-table td {text-align: left; padding: 3px 8px; border: 0;
  border-bottom: 1px solid var(--border-color-primary); vertical-align: top; font-variant-numeric: tabular-nums;}
.answers-table thead, .answers-table tbody, .answers-table tr {border: 0 !important;}
.answers-table th {font-weight: 600; white-space: nowrap;}
.answers-table td:nth-child(n+3) {white-space: nowrap;}
.answers-table small {display: block; font-weight: 400; color: var(--body-text-color-subdued);}
.answers-table mark {background: #D55E00; color: #fff; padding: 0 3px; border-radius: 3px;}
.answers-table tr.stable th, .answers-table tr.stable td {border-top: 2px solid #009E73;}
.answers-table tr.full {background: var(--background-fill-secondary);}
.reading, .note {margin: 0; font-size: 13px; color: var(--body-text-color-subdued);}
.plot-heading {margin: 0; font-size: 15px; font-weight: 600;}
#examples > .gallery {display: grid; grid-template-columns: repeat(8, minmax(0, 1fr)); gap: 4px;}
#examples .gallery-item {width: 100%; aspect-ratio: 1; padding: 0; overflow: hidden;}
#examples .gallery-item * {width: 100%; height: 100%; max-width: none; max-height: none; border: 0;}
#examples img {object-fit: cover;}
#suggestions > .gallery {gap: 4px;}
#suggestions .gallery-item {padding: 1px 8px; font-size: 13px;}
#attention-query, #attention-query .wrap {padding: 0 !important; margin: 0 !important;}
#random-scene {color: var(--body-text-color);}
.js-plotly-plot text {fill: var(--body-text-color) !important;}
.js-plotly-plot .gridlayer path {stroke: var(--border-color-primary) !important;}
.js-plotly-plot .zerolinelayer path {stroke: var(--border-color-primary) !important;}
.js-plotly-plot .modebar {display: none !important;}
@media (max-width: 640px) {
  .header .facts {margin-left: 0;}
  .figures {grid-template-columns: repeat(2, minmax(0, 1fr));}
  .verdict {font-size: 16px;}
  #answers {flex-direction: column;}
}
"""

# Gradio's slider says that it was let go of for a pointer only; this says so for keys too.
KEYBOARD_RELEASE = """
<script>
document.addEventListener("keyup", (event) => {
  const keys = ["Enter", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "PageUp", "PageDown", "Home", "End"];
  if (keys.includes(event.key) && event.target.matches("#layer input"))
    event.target.dispatchEvent(new PointerEvent("pointerup", {bubbles: true}));
});
</script>
"""
