"""The sidebar in which another model is chosen, and what one should know of each before."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from vtw_demo.errors import UserError
from vtw_demo.models.loading import EMBEDDED, QUANTIZATIONS
from vtw_demo.models.registry import KNOWN_MODELS, NO_QUANTIZATION, StartingLayer, find_known_model
from vtw_demo.page.html import note_line, problem_line, progress_line
from vtw_demo.page.layout import COMPONENTS
from vtw_demo.page.page import Asked, Page, Shown
from vtw_demo.page.session import Session
from vtw_demo.page.tabs.tab import PageTab
from vtw_demo.plots.templates import TEMPLATES
from vtw_demo.server.queue import StoppedError
from vtw_demo.server.switching import STILL_THERE, Switching

LOOK_SECONDS = 30  # after which a visitor hears that another one has switched the model
UNKNOWN = (
    "This one is not among the models that are known to work. Any other vision-language model of the Hugging Face hub "
    "can be tried by its id, if its decoder takes visual tokens in its sequence."
)


class ModelTab(PageTab):
    name = "model"

    def __init__(self, page: Page, switching: Switching) -> None:
        super().__init__(page)
        self.switching = switching
        loaded = page.engine.vlm.name
        others = [(model.title, model.name) for model in KNOWN_MODELS]
        own = [] if find_known_model(loaded) or loaded == EMBEDDED else [(loaded, loaded)]
        with gr.Sidebar("Model", open=False, elem_id="model-sidebar"):
            models = [("Embedded", EMBEDDED), *own, *others]
            self.chosen = gr.Dropdown(models, value=loaded, **COMPONENTS["model-name"])
            choices = [("none", NO_QUANTIZATION), *((bits.replace("bit", " bits"), bits) for bits in QUANTIZATIONS)]
            self.quantization = gr.Radio(choices, value=NO_QUANTIZATION, **COMPONENTS["quantization"])
            self.load = gr.Button("Load", size="sm", elem_id="load-model")
            self.facts = gr.HTML(model_facts(loaded), padding=False, elem_id="model-facts")

    def connect(self) -> None:
        page, layout = self.page, self.page.layout
        page.run_after(self.load.click, self.switch, self.chosen, self.quantization, named="loading the model")
        page.at_once(self.chosen.change, model_facts, [self.chosen], [self.facts], preprocess=False)
        looked_at = [*page.about_model(), layout.note]
        page.at_once(gr.Timer(LOOK_SECONDS).tick, self.look, [layout.session], looked_at)

    def switch(self, session: Session, asked: Asked, name: Any, quantization: Any) -> Iterator[Shown]:
        """Another model, for all visitors; then the query with it."""
        page, layout, stop = self.page, self.page.layout, session.stop
        if page.upgrade is not None:
            page.upgrade.stop(f"{name} was asked for: no other is fetched.")
        try:
            for event in self.switching.switch(session.visitor, str(name or "").strip(), str(quantization or ""), stop):
                yield {layout.verdict: progress_line(str(event))}
        except (UserError, StoppedError) as error:
            if session.vlm is not page.engine.vlm:
                yield self._show_model(session)
            if isinstance(error, UserError):
                raise
            if stop is session.stop:
                yield {layout.verdict: progress_line(f"Stopped. {STILL_THERE}")}
            return
        yield self._show_model(session)
        yield from page.run_withdrawn(session, asked._replace(layer=page.starting_layer()))

    def look(self, session: Session) -> Shown:
        """From time to time: whether another visitor has switched the model."""
        note, before, vlm = self.page.layout.note, session.vlm, self.page.engine.vlm
        if before is None or before is vlm or self.page.is_upgraded:
            return {note: gr.skip()}
        if (before.name, before.precision) == (vlm.name, vlm.precision):  # a switch failed: it was loaded again
            session.show_model(vlm)
            return {note: gr.skip()}
        said = (
            f"Another visitor has switched the model: this page now asks {vlm.name} ({vlm.precision}, {vlm.layers} "
            "layers). What is shown is of the model before."
        )
        return {**self._show_model(session), note: gr.HTML(problem_line(said), visible=True)}

    def _show_model(self, session: Session) -> Shown:
        session.show_model(self.page.engine.vlm)
        return self.page.about_model()


def model_facts(name: Any) -> str:
    if name == EMBEDDED:
        return note_line("The small model that ships with the demo: it runs on any CPU.")
    known = find_known_model(name) if isinstance(name, str) else None
    if known is None:
        return note_line(UNKNOWN)
    starts = StartingLayer(known.layer, known.layer_source)
    return TEMPLATES.get_template("model_facts.html").render(model=known, starts=starts)
