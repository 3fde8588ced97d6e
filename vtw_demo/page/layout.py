"""How the page looks, what is on it above the tabs, and where. What it does is in `vtw_demo.page.asking`."""

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from vtw_demo.comparison.calibration import Calibration
from vtw_demo.comparison.compare import MAXIMUM_NEW_TOKENS
from vtw_demo.files import data_beside
from vtw_demo.formats import count
from vtw_demo.measurements.equal_flops import TITLES
from vtw_demo.models.picture_detail import FEW_TOKENS, Detail
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
COMPONENTS: dict[str, dict[str, Any]] = data_beside(__file__, "components.toml")
"""What is set of the components, by name, whatever the model and the example are."""
THEME = gr.themes.Base(**COMPONENTS["theme"]).set(**COMPONENTS["theme-colours"])
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


def detail_choices(vlm: VisionLanguageModel, tokens: Mapping[Detail, int] | None = None) -> dict[str, Any]:
    """What is set of the choice of a picture detail; `tokens`: the visual tokens that each gives for the picture."""
    details, given = vlm.details, tokens or {}
    names = {detail: f"{detail} detail" if len(details) > 1 else "one size" for detail in details}
    said = {detail: f"{name}: {given[detail]:,} tokens" if given else name for detail, name in names.items()}
    is_little = given and given[vlm.detail] < FEW_TOKENS
    info = f"With fewer than {FEW_TOKENS} visual tokens there is hardly anything to withdraw." if is_little else None
    return {"choices": [(said[detail], detail) for detail in details], "info": info, "interactive": len(details) > 1}


class Layout:
    """The components, made inside a `gr.Blocks`, with the first example chosen."""

    def __init__(
        self, examples: Sequence[Example], vlm: VisionLanguageModel, layer: int, calibration: Calibration | None
    ) -> None:
        self.session = gr.State(Session())
        self.clicked = gr.Number(visible=False)
        # In the visitor's browser alone, so that the key keeps nothing from anybody.
        self.history = gr.BrowserState("", storage_key="vtw-demo-history", secret="vtw-demo")
        with gr.Column(elem_id="head") as self.head:
            self.header = gr.HTML(header(vlm), padding=False)
        gr.HTML(
            f'<details class="about"><summary>What am I looking at?</summary>{WHAT_AM_I_LOOKING_AT}</details>',
            padding=False,
            elem_id="about",
        )
        self.note = gr.HTML(padding=False, visible=False, elem_id="note")
        gr.HTML(html_template=asset("tour.html"), js_on_load=asset("tour.js"), padding=False, elem_id="tour")
        # Read by the script that makes the link: {"example": name}, {"scene": seed}, or {} for an own picture.
        self.model = gr.JSON({"model": vlm.name, "detail": vlm.detail}, visible="hidden")
        self.origin = gr.JSON(examples[0].origin, visible=False)
        # In the order of a phone's page; sizes.css says what stands where on others.
        with gr.Row(elem_id="query"):
            with gr.Column(elem_id="picture-column"):
                self.picture = gr.Image(str(examples[0].picture), **COMPONENTS["picture"])
                self.clip = gr.Video(visible=vlm.sampling is not None, **COMPONENTS["clip"])
            self._lay_out_question(examples[0])
            with gr.Row(equal_height=True, elem_id="answers"):
                empty = {run: AnswerCard(run, layer).to_html() for run in ("full", "withdrawn")} | {"beside": ""}
                self.cards = {run: gr.HTML(card, padding=False, elem_id=run) for run, card in empty.items()}
            self.verdict = gr.HTML(progress_line("Starting."), padding=False, elem_id="verdict")
            self._lay_out_layer(vlm, layer, calibration)
            self._lay_out_examples(examples)
        # What it is given is saved by the browser; nothing of it is shown, and nothing stays on the server.
        self.file = gr.HTML(html_template="", js_on_load=asset("download.js"), visible="hidden", padding=False)

    @property
    def query(self) -> list[Any]:
        """What is asked, in the order of `Asked`."""
        asked = [self.picture, self.clip, self.question, self.layer, self.max_new_tokens]
        return [*asked, self.detail, self.beside]

    def _lay_out_question(self, first: Example) -> None:
        with gr.Row(elem_id="ask"):
            self.question = gr.Textbox(first.question, max_length=LONGEST_QUESTION, **COMPONENTS["question"])
            self.run = gr.Button("Run", variant="primary", elem_id="run")
            self.stop = gr.Button("Stop", variant="stop", elem_id="stop")
        suggested = [[suggestion] for suggestion in first.suggestions]
        self.suggestions = gr.Dataset(components=[self.question], samples=suggested, **COMPONENTS["suggestions"])

    def _lay_out_layer(self, vlm: VisionLanguageModel, layer: int, calibration: Calibration | None) -> None:
        info = layer_info(vlm.layers, starting_layer(vlm), calibration)
        self.layer = gr.Slider(maximum=vlm.layers, value=layer, info=info, **COMPONENTS["layer"])
        # Its value is what the last question's sweep says of every K; it shows one, without the server.
        self.live = gr.HTML(
            html_template="", js_on_load=asset("live_layer.js"), layer=layer, padding=False, elem_id="live"
        )
        gr.HTML("<details><summary>Examples and settings</summary></details>", padding=False, elem_id="fold")
        with gr.Column(elem_id="settings"):
            self.calibrate = gr.Button("Choose K for me", size="sm", elem_id="calibrate")
            self.max_new_tokens = gr.Number(NEW_TOKENS, maximum=MAXIMUM_NEW_TOKENS, **COMPONENTS["max-new-tokens"])
            self.detail = gr.Dropdown(value=vlm.detail, **COMPONENTS["detail"], **detail_choices(vlm))
            rivals = [("beside it: off", ""), *((f"beside it: {title}", rival) for rival, title in TITLES.items())]
            self.beside = gr.Dropdown(rivals, value="", **COMPONENTS["beside-choice"])

    def _lay_out_examples(self, examples: Sequence[Example]) -> None:
        with gr.Row(elem_id="pictures"):
            pictures = [[str(example.picture)] for example in examples]
            self.examples = gr.Dataset(components=[gr.Image(render=False)], samples=pictures, **COMPONENTS["examples"])
            self.random_scene = gr.Button("New scene", **COMPONENTS["random-scene"])
