"""What is on the page and where. What it does is in `vtw_demo.page.callbacks`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gradio as gr

from vtw_demo.compare import MAXIMUM_NEW_TOKENS
from vtw_demo.page.answers import Answer, header, progress_line
from vtw_demo.page.examples import Example
from vtw_demo.page.plots import ANSWER_MEAN, LAST_PROMPT
from vtw_demo.page.session import Session

MAXIMUM_UPLOAD = "20mb"
NEW_TOKENS = 128
DEFAULT_LAYER_SHARE = 0.75
MEMORY_NOTE = "Peak memory is measured on GPUs only: this model runs on a CPU."


def default_layer(layers: int) -> int:
    """The withdrawal layer that the page starts with where none was asked for."""
    return max(1, round(DEFAULT_LAYER_SHARE * layers))


@dataclass(frozen=True)
class Layout:
    """The components that callbacks read or write."""

    session: gr.State
    header: gr.HTML
    picture: gr.Image
    examples: gr.Dataset
    random_scene: gr.Button
    question: gr.Textbox
    suggestions: gr.Dataset
    layer: gr.Slider
    max_new_tokens: gr.Slider
    run: gr.Button
    stop: gr.Button
    verdict: gr.HTML
    full: gr.HTML
    withdrawn: gr.HTML
    attention_query: gr.Radio
    attention: gr.Plot
    attention_reading: gr.HTML
    timing: gr.Plot
    timing_reading: gr.HTML


def lay_out(examples: Sequence[Example], model: str, precision: str, device: str, layers: int, layer: int) -> Layout:
    """Make the page's components, inside a `gr.Blocks`, with the first example chosen."""
    first = examples[0]
    session = gr.State(Session())
    top = gr.HTML(header(model, precision, device, layers, None), padding=False)
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            picture = gr.Image(
                str(first.picture),
                label="Picture",
                sources=["upload", "clipboard", "webcam"],
                type="filepath",
                height=240,
                buttons=[],
                elem_id="picture",
            )
            gallery = gr.Dataset(
                components=[gr.Image(render=False)],
                samples=[[str(example.picture)] for example in examples],
                label="Examples",
                layout="gallery",
                type="index",
                samples_per_page=len(examples),
                elem_id="examples",
            )
            random_scene = gr.Button("New random scene", size="sm", elem_id="random-scene")
            question = gr.Textbox(
                first.question, label="Question", lines=1, max_lines=4, max_length=20_000, elem_id="question"
            )
            suggestions = gr.Dataset(
                components=[question],
                samples=[[suggestion] for suggestion in first.suggestions],
                label="Suggested questions",
                layout="gallery",
                type="tuple",
                samples_per_page=12,
                elem_id="suggestions",
            )
            layer_slider = gr.Slider(
                1,
                layers,
                value=layer,
                step=1,
                label="Withdrawal layer K",
                info=f"No layer from K on holds a visual token; {layers} withdraws none.",
                buttons=[],
                elem_id="layer",
            )
            with gr.Row():
                run = gr.Button("Run", variant="primary", min_width=100)
                stop = gr.Button("Stop", variant="stop", min_width=100)
            max_new_tokens = gr.Slider(
                1,
                MAXIMUM_NEW_TOKENS,
                value=NEW_TOKENS,
                step=1,
                label="Longest answer, in tokens",
                buttons=[],
                elem_id="max-new-tokens",
            )
        with gr.Column(scale=5, min_width=320):
            verdict = gr.HTML(progress_line("Starting with the first example."), padding=False, elem_id="verdict")
            with gr.Row(equal_height=True, elem_id="answers"):
                full = gr.HTML(Answer("full", layer).to_html(), padding=False, min_width=300, elem_id="full")
                withdrawn = gr.HTML(
                    Answer("withdrawn", layer).to_html(), padding=False, min_width=300, elem_id="withdrawn"
                )
            if not device.startswith("cuda"):
                gr.HTML(f'<p class="note">{MEMORY_NOTE}</p>', padding=False)
            with gr.Row():
                with gr.Column(scale=5, min_width=320):
                    gr.HTML('<h2 class="plot-heading">Where attention goes</h2>', padding=False)
                    attention_query = gr.Radio(
                        [LAST_PROMPT, ANSWER_MEAN],
                        value=LAST_PROMPT,
                        label="Attention of the",
                        container=False,
                        show_label=False,
                        elem_id="attention-query",
                    )
                    attention = gr.Plot(show_label=False, container=False, elem_id="attention")
                    attention_reading = gr.HTML(padding=False, elem_id="attention-reading")
                with gr.Column(scale=3, min_width=320):
                    gr.HTML('<h2 class="plot-heading">Where time goes</h2>', padding=False)
                    timing = gr.Plot(show_label=False, container=False, elem_id="timing")
                    timing_reading = gr.HTML(padding=False, elem_id="timing-reading")
    return Layout(
        session=session,
        header=top,
        picture=picture,
        examples=gallery,
        random_scene=random_scene,
        question=question,
        suggestions=suggestions,
        layer=layer_slider,
        max_new_tokens=max_new_tokens,
        run=run,
        stop=stop,
        verdict=verdict,
        full=full,
        withdrawn=withdrawn,
        attention_query=attention_query,
        attention=attention,
        attention_reading=attention_reading,
        timing=timing,
        timing_reading=timing_reading,
    )
