"""The tabs that show one query's attention: the last prompt token's, or that of an answer token that one clicks."""

import json
from collections.abc import Iterator
from typing import Any

import gradio as gr

from vtw_demo.models.loading import EMBEDDED, EMBEDDED_FOLDER
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.page.html import asset, reading_line, token_strip
from vtw_demo.page.page import Shown
from vtw_demo.page.session import Session
from vtw_demo.page.tabs.tab import PlottedTab
from vtw_demo.plots.attention import where_it_looks
from vtw_demo.plots.attention_map import attention_map_png
from vtw_demo.plots.tab import ANSWER_MEAN, ATTENTION, CONTRIBUTION, LAST_PROMPT, QUANTITIES, AttentionQuery, Quantity

EVALUATION = EMBEDDED_FOLDER.parent / "evaluation" / "embedded.json"


def read_choice(query: str) -> AttentionQuery:
    """What a button of the strip stands for. Raises ValueError for what is none."""
    return next((named for named in (LAST_PROMPT, ANSWER_MEAN) if query == named), None) or int(query)


class AttentionTab(PlottedTab):
    strip_id = "attention-strip"
    has_mean = True
    quantities: tuple[Quantity, ...] = QUANTITIES

    def lay_out_controls(self) -> None:
        with gr.Row(elem_classes="attention-controls"):
            look: dict[str, Any] = {"label": "Shown", "container": False, "min_width": 0}
            self.quantity = gr.Radio(self.quantities, value=ATTENTION, elem_id=f"{self.name}-quantity", **look)
            self.strip = self.shows(gr.HTML(js_on_load=asset("token_strip.js"), padding=False, elem_id=self.strip_id))

    def lay_out_notes(self) -> None:
        self.about = gr.HTML(self._where_it_looks(self.page.engine.vlm), padding=False)

    def about_model(self, vlm: VisionLanguageModel) -> Shown:
        return {self.about: self._where_it_looks(vlm)}

    def _where_it_looks(self, vlm: VisionLanguageModel) -> str:
        """Of the embedded model, which its evaluation measured."""
        is_measured = vlm.name == EMBEDDED and EVALUATION.exists()
        measured = is_measured and json.loads(EVALUATION.read_text(encoding="utf-8")).get("attention")
        if not measured or len(measured["shares"]) != vlm.layers:
            return ""
        return reading_line(f"This model, over {measured['samples']} questions: {where_it_looks(measured['shares'])}")

    def connect(self) -> None:
        super().connect()
        self.page.on_model(self.strip.select, self.choose, outputs=self.shown)
        self.page.on_model(self.quantity.input, self.choose_quantity, [self.quantity], self.shown)

    def choose_quantity(self, session: Session, quantity: Quantity) -> Iterator[Shown]:
        session.quantities[self.name] = quantity
        yield from self.redraw(session)

    def choose(self, session: Session, chosen: gr.EventData) -> Iterator[Shown]:
        session.queries[self.name] = read_choice(chosen.query)
        yield from self.redraw(session)

    def show_controls(self, session: Session) -> Shown:
        query = session.query_of(self.name)
        return {self.strip: token_strip(session.analysis, query, self.has_mean)} if session.analysis else {}


class AttentionMapTab(AttentionTab):
    strip_id = "map-strip"
    has_mean = False
    quantities = (ATTENTION, CONTRIBUTION)
    has_png = True

    def content(self, session: Session, kind: str) -> str | bytes:
        """As PNG, all layers' maps on one sheet."""
        if kind != "png" or session.analysis is None:
            return super().content(session, kind)
        view = session.view(self.page.engine.calibration(session.analysis.vlm))
        return attention_map_png(*self.tab.measured(session.analysis, view))
