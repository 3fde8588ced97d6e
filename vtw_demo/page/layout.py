"""What is on the page and where. What it does is in `vtw_demo.page.callbacks`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gradio as gr

from vtw_demo.comparison.calibration import DEFAULT_SAMPLES, Calibration
from vtw_demo.comparison.compare import MAXIMUM_NEW_TOKENS
from vtw_demo.formats import count
from vtw_demo.models.registry import StartingLayer, starting_layer
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.page.examples import Example
from vtw_demo.page.lines import header, progress_line
from vtw_demo.page.sections import Sections, lay_out_sections
from vtw_demo.page.session import Session
from vtw_demo.plots.answer_cards import AnswerCard
from vtw_demo.plots.glossary import WHAT_AM_I_LOOKING_AT
from vtw_demo.server.query import LONGEST_QUESTION

NEW_TOKENS = 128
CALIBRATION_SAMPLES = DEFAULT_SAMPLES


def default_layer(starting: StartingLayer, calibration: Calibration | None) -> int:
    """The withdrawal layer that the page starts with where none was asked for: the calibrated one, if there is one."""
    return starting.layer if calibration is None else calibration.nearest_layer


def layer_info(layers: int, starting: StartingLayer, calibration: Calibration | None) -> str:
    """What is said under the slider: what K means, and where the page's first K comes from."""
    said = f"No layer from K on holds a visual token; {layers} withdraws none."
    if calibration is None:
        return f"{said} {starting}"
    samples = count(len(calibration.samples), "sample")
    nearest = "" if calibration.layer else "nearest to the threshold, "
    return f"{said} Calibrated on {samples}: {nearest}K = {calibration.nearest_layer}."


@dataclass(frozen=True)
class Layout:
    """The components that callbacks read or write."""

    session: gr.State
    header: gr.HTML
    note: gr.HTML
    model: gr.JSON
    picture: gr.Image
    clip: gr.Video
    origin: gr.JSON
    question: gr.Textbox
    run: gr.Button
    stop: gr.Button
    suggestions: gr.Dataset
    layer: gr.Slider
    calibrate: gr.Button
    max_new_tokens: gr.Number
    examples: gr.Dataset
    random_scene: gr.Button
    swept: gr.JSON
    live: gr.HTML
    full: gr.HTML
    withdrawn: gr.HTML
    verdict: gr.HTML
    sections: Sections
    file: gr.JSON


def lay_out(
    examples: Sequence[Example],
    vlm: VisionLanguageModel,
    layer: int,
    calibration: Calibration | None,
    switchable: bool,
) -> Layout:
    """Make the page's components, inside a `gr.Blocks`, with the first example chosen.

    `switchable`: whether visitors may put another model in place of `vlm`.
    """
    first, layers = examples[0], vlm.layers
    session = gr.State(Session())
    top = gr.HTML(header(vlm.name, vlm.precision, str(vlm.device), layers, None), padding=False)
    gr.HTML(
        f'<details class="about"><summary>What am I looking at?</summary>{WHAT_AM_I_LOOKING_AT}</details>',
        padding=False,
        elem_id="about",
    )
    note = gr.HTML(padding=False, visible=False, elem_id="note")
    # Read by the script that makes the link: {"example": name}, {"scene": seed}, or {} for an own picture.
    model = gr.JSON({"model": vlm.name}, visible=False)
    origin = gr.JSON({"example": first.picture.stem}, visible=False)
    with gr.Row(elem_id="query"):
        with gr.Column(scale=0, min_width=290, elem_id="picture-column"):
            picture = gr.Image(
                str(first.picture),
                label="Picture",
                sources=["upload", "clipboard", "webcam"],
                type="filepath",
                height=262,
                buttons=[],
                elem_id="picture",
            )
            clip = gr.Video(
                label="Or a clip: up to a minute",
                sources=["upload"],
                height=150,
                visible=vlm.sampling is not None,
                elem_id="clip",
            )
        with gr.Column(scale=5, min_width=320, elem_id="controls"):
            with gr.Row(elem_id="ask"):
                question = gr.Textbox(
                    first.question,
                    label="Question",
                    lines=1,
                    max_lines=3,
                    max_length=LONGEST_QUESTION,
                    scale=6,
                    min_width=220,
                    elem_id="question",
                )
                run = gr.Button("Run", variant="primary", scale=1, min_width=70, elem_id="run")
                stop = gr.Button("Stop", variant="stop", scale=1, min_width=70, elem_id="stop")
            suggestions = gr.Dataset(
                components=[question],
                samples=[[suggestion] for suggestion in first.suggestions],
                show_label=False,
                layout="gallery",
                type="tuple",
                samples_per_page=12,
                elem_id="suggestions",
            )
            with gr.Row(elem_id="layer-row"):
                layer_slider = gr.Slider(
                    1,
                    layers,
                    value=layer,
                    step=1,
                    label="Withdrawal layer K",
                    info=layer_info(layers, starting_layer(vlm), calibration),
                    buttons=[],
                    scale=6,
                    min_width=260,
                    elem_id="layer",
                )
                with gr.Column(scale=2, min_width=150):
                    calibrate = gr.Button("Choose K for me", size="sm", elem_id="calibrate")
                    max_new_tokens = gr.Number(
                        NEW_TOKENS,
                        label="Tokens, at most",
                        precision=0,
                        minimum=1,
                        maximum=MAXIMUM_NEW_TOKENS,
                        elem_id="max-new-tokens",
                    )
            with gr.Row(elem_id="pictures"):
                gallery = gr.Dataset(
                    components=[gr.Image(render=False)],
                    samples=[[str(example.picture)] for example in examples],
                    show_label=False,
                    layout="gallery",
                    type="index",
                    samples_per_page=len(examples),
                    elem_id="examples",
                )
                random_scene = gr.Button("New scene", size="sm", scale=0, min_width=96, elem_id="random-scene")
        with gr.Column(scale=3, min_width=320):
            # Its value is read by the script of the live line, in the browser.
            swept = gr.JSON(visible=False)
            live = gr.HTML(padding=False, elem_id="live")
    with gr.Row(equal_height=True, elem_id="answers"):
        full = gr.HTML(AnswerCard("full", layer).to_html(), padding=False, min_width=300, elem_id="full")
        withdrawn = gr.HTML(AnswerCard("withdrawn", layer).to_html(), padding=False, min_width=300, elem_id="withdrawn")
    verdict = gr.HTML(progress_line("Starting."), padding=False, elem_id="verdict")
    sections = lay_out_sections(
        layers,
        calibration,
        on_cpu=vlm.device.type != "cuda",
        switchable_from=vlm.name if switchable else None,
    )
    return Layout(
        session=session,
        header=top,
        note=note,
        model=model,
        picture=picture,
        clip=clip,
        origin=origin,
        question=question,
        run=run,
        stop=stop,
        suggestions=suggestions,
        layer=layer_slider,
        calibrate=calibrate,
        max_new_tokens=max_new_tokens,
        examples=gallery,
        random_scene=random_scene,
        swept=swept,
        live=live,
        full=full,
        withdrawn=withdrawn,
        verdict=verdict,
        sections=sections,
        # Its value is read by the script that saves it.
        file=gr.JSON(visible=False),
    )
