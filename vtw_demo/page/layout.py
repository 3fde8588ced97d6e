"""How the page looks, what is on it above the tabs, and where. What it does is in `vtw_demo.page.asking`."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from vtw_demo.comparison.analysis import RUNS
from vtw_demo.comparison.calibration import Calibration
from vtw_demo.comparison.compare import MAXIMUM_NEW_TOKENS
from vtw_demo.formats import count
from vtw_demo.models.registry import StartingLayer, starting_layer
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.page.examples import Example
from vtw_demo.page.html import asset, header, progress_line
from vtw_demo.page.session import Session
from vtw_demo.plots.answer_cards import AnswerCard
from vtw_demo.plots.attention_map import ATTENTION_MAP_SCRIPT
from vtw_demo.plots.glossary import WHAT_AM_I_LOOKING_AT
from vtw_demo.plots.report import PLOTS_CSS
from vtw_demo.server.query import LONGEST_QUESTION

NEW_TOKENS = 128
# Fonts that every system has, so that the page needs no network, and colours for light and dark.
THEME = gr.themes.Base(
    primary_hue="blue",
    neutral_hue="slate",
    radius_size="md",
    spacing_size="sm",
    font=("system-ui", "sans-serif"),
    font_mono=("ui-monospace", "monospace"),
).set(
    body_text_color_subdued="*neutral_600",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
)

CSS = PLOTS_CSS + asset("page.css")
# Gradio changes the rules that it is given within @media: those for sizes stand in the page's head.
_SCRIPTS = "".join(asset(f"{name}.js") for name in ("join", "keyboard", "file_types", "older", "sizes"))
HEAD = f"<style>{asset('sizes.css')}{asset('tour.css')}</style><script>{_SCRIPTS}{ATTENTION_MAP_SCRIPT}</script>"


def default_layer(starting: StartingLayer, calibration: Calibration | None) -> int:
    """The withdrawal layer that the page starts with where none was asked for: the calibrated one, if there is one."""
    return starting.layer if calibration is None else calibration.nearest_layer


def layer_info(layers: int, starting: StartingLayer, calibration: Calibration | None) -> str:
    """What is said under the slider: what K means, and where the page's first K comes from."""
    said = f"No layer from K on holds a visual token; {layers} withdraws none."
    if calibration is None:
        return f"{said} {starting}"
    samples = count(len(calibration.samples), "sample") if len(calibration.samples) > 1 else "1 sample, too few"
    nearest = "" if calibration.layer else "nearest to the threshold, "
    return f"{said} Calibrated on {samples}: {nearest}K = {calibration.nearest_layer}."


class Layout:
    """The components, made inside a `gr.Blocks`, with the first example chosen."""

    def __init__(
        self, examples: Sequence[Example], vlm: VisionLanguageModel, layer: int, calibration: Calibration | None
    ) -> None:
        self.session = gr.State(Session())
        self.clicked = gr.Number(visible=False)
        # In the visitor's browser alone, so that the key keeps nothing from anybody.
        self.history = gr.BrowserState("", storage_key="vtw-demo-history", secret="vtw-demo")
        self.header = gr.HTML(header(vlm), padding=False)
        gr.HTML(
            f'<details class="about"><summary>What am I looking at?</summary>{WHAT_AM_I_LOOKING_AT}</details>',
            padding=False,
            elem_id="about",
        )
        self.note = gr.HTML(padding=False, visible=False, elem_id="note")
        gr.HTML(html_template=asset("tour.html"), js_on_load=asset("tour.js"), padding=False, elem_id="tour")
        # Read by the script that makes the link: {"example": name}, {"scene": seed}, or {} for an own picture.
        self.model = gr.JSON({"model": vlm.name}, visible=False)
        self.origin = gr.JSON(examples[0].origin, visible=False)
        # In the order of a phone's page; sizes.css says what stands where on others.
        with gr.Row(elem_id="query"):
            with gr.Column(elem_id="picture-column"):
                self._lay_out_picture(examples[0], takes_clips=vlm.sampling is not None)
            self._lay_out_question(examples[0])
            with gr.Row(equal_height=True, elem_id="answers"):
                self.cards = {
                    run: gr.HTML(AnswerCard(run, layer).to_html(), padding=False, elem_id=run) for run in RUNS
                }
            self.verdict = gr.HTML(progress_line("Starting."), padding=False, elem_id="verdict")
            self._lay_out_layer(vlm, layer, calibration)
            self._lay_out_examples(examples)
        # What it is given is saved by the browser; nothing of it is shown, and nothing stays on the server.
        self.file = gr.HTML(html_template="", js_on_load=asset("download.js"), visible="hidden", padding=False)

    @property
    def query(self) -> list[Any]:
        """What is asked, in the order of `Asked`."""
        return [self.picture, self.clip, self.question, self.layer, self.max_new_tokens]

    def _lay_out_picture(self, first: Example, takes_clips: bool) -> None:
        self.picture = gr.Image(
            str(first.picture),
            label="Picture",
            sources=["upload", "clipboard", "webcam"],
            type="filepath",
            format="png",  # of copies of pictures: without loss
            height=262,
            buttons=[],
            elem_id="picture",
        )
        self.clip = gr.Video(
            label="Or a clip: up to a minute", sources=["upload"], height=150, visible=takes_clips, elem_id="clip"
        )

    def _lay_out_question(self, first: Example) -> None:
        with gr.Row(elem_id="ask"):
            self.question = gr.Textbox(
                first.question,
                label="Question",
                lines=1,
                max_lines=3,
                max_length=LONGEST_QUESTION,
                elem_id="question",
            )
            self.run = gr.Button("Run", variant="primary", elem_id="run")
            self.stop = gr.Button("Stop", variant="stop", elem_id="stop")
        self.suggestions = gr.Dataset(
            components=[self.question],
            samples=[[suggestion] for suggestion in first.suggestions],
            show_label=False,
            layout="gallery",
            type="tuple",
            samples_per_page=12,
            elem_id="suggestions",
        )

    def _lay_out_layer(self, vlm: VisionLanguageModel, layer: int, calibration: Calibration | None) -> None:
        self.layer = gr.Slider(
            1,
            vlm.layers,
            value=layer,
            step=1,
            label="Withdrawal layer K",
            info=layer_info(vlm.layers, starting_layer(vlm), calibration),
            buttons=[],
            elem_id="layer",
        )
        # Its value is what the last question's sweep says of every K; it shows one, without the server.
        self.live = gr.HTML(
            html_template="", js_on_load=asset("live_layer.js"), layer=layer, padding=False, elem_id="live"
        )
        gr.HTML("<details><summary>Examples and settings</summary></details>", padding=False, elem_id="fold")
        with gr.Column(elem_id="settings"):
            self.calibrate = gr.Button("Choose K for me", size="sm", elem_id="calibrate")
            self.max_new_tokens = gr.Number(
                NEW_TOKENS,
                label="Tokens, at most",
                precision=0,
                minimum=1,
                maximum=MAXIMUM_NEW_TOKENS,
                elem_id="max-new-tokens",
            )

    def _lay_out_examples(self, examples: Sequence[Example]) -> None:
        with gr.Row(elem_id="pictures"):
            self.examples = gr.Dataset(
                components=[gr.Image(render=False)],
                samples=[[str(example.picture)] for example in examples],
                show_label=False,
                layout="gallery",
                type="index",
                samples_per_page=len(examples),
                elem_id="examples",
            )
            self.random_scene = gr.Button("New scene", size="sm", scale=0, min_width=96, elem_id="random-scene")
