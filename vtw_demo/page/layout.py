"""What is on the page and where. What it does is in `vtw_demo.page.callbacks`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gradio as gr

from vtw_demo.calibration import DEFAULT_SAMPLES, DEFAULT_THRESHOLD, Calibration
from vtw_demo.compare import MAXIMUM_NEW_TOKENS
from vtw_demo.figures.attention import ANSWER_MEAN, LAST_PROMPT
from vtw_demo.figures.divergence import divergence_figure
from vtw_demo.figures.formats import count
from vtw_demo.page.answers import Answer, header, progress_line
from vtw_demo.page.examples import Example
from vtw_demo.page.session import Session

MAXIMUM_UPLOAD = "20mb"
NEW_TOKENS = 128
DEFAULT_LAYER_SHARE = 0.75
CALIBRATION_SAMPLES = DEFAULT_SAMPLES
CHOOSE_K = "choose-k"
MEMORY_NOTE = "Peak memory is measured on GPUs only: this model runs on a CPU."


def default_layer(layers: int, calibration: Calibration | None) -> int:
    """The withdrawal layer that the page starts with where none was asked for: the calibrated one, if there is one."""
    return max(1, round(DEFAULT_LAYER_SHARE * layers)) if calibration is None else calibration.nearest_layer


def layer_info(layers: int, calibration: Calibration | None) -> str:
    """What is said under the slider."""
    said = f"No layer from K on holds a visual token; {layers} withdraws none."
    if calibration is None:
        return said
    samples = count(len(calibration.samples), "sample")
    nearest = "" if calibration.layer else "nearest to the threshold, "
    return f"{said} Calibrated on {samples}: {nearest}K = {calibration.nearest_layer}."


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
    swept: gr.JSON
    live: gr.HTML
    calibrate: gr.Button
    tabs: gr.Tabs
    threshold: gr.Number
    divergence: gr.Plot
    divergence_reading: gr.HTML
    words: gr.Plot
    words_reading: gr.HTML
    answer_all: gr.Button
    first_layer: gr.Number
    last_layer: gr.Number
    answers_table: gr.HTML
    layer_times: gr.Plot


def lay_out(
    examples: Sequence[Example],
    model: str,
    precision: str,
    device: str,
    layers: int,
    layer: int,
    calibration: Calibration | None,
) -> Layout:
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
                info=layer_info(layers, calibration),
                buttons=[],
                elem_id="layer",
            )
            # Its value is read by the script of the live line, in the browser.
            swept = gr.JSON(visible=False)
            live = gr.HTML(padding=False, elem_id="live")
            with gr.Row():
                run = gr.Button("Run", variant="primary", min_width=100)
                stop = gr.Button("Stop", variant="stop", min_width=100)
            calibrate = gr.Button("Choose K for me", size="sm", elem_id="calibrate")
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
            with gr.Tabs(elem_id="tabs") as tabs:
                with gr.Tab("Attention and time"), gr.Row():
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
                with gr.Tab("Choose K", id=CHOOSE_K):
                    gr.HTML(
                        '<h2 class="plot-heading">How far withdrawal at each K moves the next token</h2>', padding=False
                    )
                    threshold = gr.Number(
                        DEFAULT_THRESHOLD if calibration is None else calibration.threshold,
                        label="Threshold: K is the first layer with a mean KL divergence of at most",
                        minimum=0,
                        elem_id="threshold",
                    )
                    divergence = gr.Plot(
                        None if calibration is None else divergence_figure(calibration, None),
                        show_label=False,
                        container=False,
                        elem_id="divergence",
                    )
                    divergence_reading = gr.HTML(padding=False, elem_id="divergence-reading")
                with gr.Tab("Word by word"):
                    gr.HTML(
                        '<h2 class="plot-heading">Which words still need the picture, in which layers</h2>',
                        padding=False,
                    )
                    words = gr.Plot(show_label=False, container=False, elem_id="words")
                    words_reading = gr.HTML(padding=False, elem_id="words-reading")
                with gr.Tab("Answers at every K"):
                    with gr.Row():
                        first_layer = gr.Number(1, label="from K", precision=0, min_width=80, elem_id="first-layer")
                        last_layer = gr.Number(
                            layers - 1, label="to K", precision=0, min_width=80, elem_id="last-layer"
                        )
                    answer_all = gr.Button("Answer at every K", size="sm", elem_id="answer-all")
                    with gr.Row():
                        with gr.Column(scale=5, min_width=320):
                            answers_table = gr.HTML(padding=False, elem_id="answers-table")
                        with gr.Column(scale=3, min_width=320):
                            layer_times = gr.Plot(show_label=False, container=False, elem_id="layer-times")
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
        swept=swept,
        live=live,
        calibrate=calibrate,
        tabs=tabs,
        threshold=threshold,
        divergence=divergence,
        divergence_reading=divergence_reading,
        words=words,
        words_reading=words_reading,
        answer_all=answer_all,
        first_layer=first_layer,
        last_layer=last_layer,
        answers_table=answers_table,
        layer_times=layer_times,
    )
