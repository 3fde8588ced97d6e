"""The tab of the divergence at every K, by which a calibration chooses one."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from vtw_demo.comparison.analysis import Part
from vtw_demo.comparison.calibration import DEFAULT_SAMPLES, Calibration, CalibrationProgress
from vtw_demo.models.registry import starting_layer
from vtw_demo.page.html import reading_line, waiting_line
from vtw_demo.page.layout import COMPONENTS, layer_info
from vtw_demo.page.page import Asked, Shown
from vtw_demo.page.session import Session
from vtw_demo.page.tabs.tab import PlottedTab
from vtw_demo.plots.divergence import divergence_figure, divergence_reading
from vtw_demo.plots.glossary import term
from vtw_demo.plots.tab import View
from vtw_demo.server.query import read_threshold
from vtw_demo.server.queue import Place


class ChooseKTab(PlottedTab):
    def lay_out_controls(self) -> None:
        threshold = View(self.page.engine.calibration(self.page.engine.vlm)).threshold
        with gr.Row(elem_classes="controls"):
            gr.HTML(
                f'<p class="note">“Choose K for me” takes the first layer whose mean {term("KL divergence")} on '
                "a few samples, over the whole answer of those that describe, is at most</p>",
                padding=False,
            )
            self.threshold = gr.Number(threshold, **COMPONENTS["threshold"])

    def connect(self) -> None:
        super().connect()
        clicked = self.page.layout.calibrate.click
        self.page.run_after(clicked, self.calibrate, self.threshold, named="the calibration", says=self.reading)

    def calibrate(self, session: Session, asked: Asked, threshold: Any) -> Iterator[Shown]:
        """Measure the divergence on a few samples, set the slider by it, and rerun the withdrawn side."""
        page, layout, engine, stop = self.page, self.page.layout, self.page.engine, session.stop
        calibration, vlm = None, page.vlm(session, asked)
        session.look_at(self.name)
        yield {page.tab_bar: gr.Tabs(selected=self.name)}
        for event in engine.calibrate(session.visitor, vlm, DEFAULT_SAMPLES, read_threshold(threshold), stop):
            if isinstance(event, Place):
                yield {self.reading: waiting_line(str(event))}
            elif isinstance(event, CalibrationProgress):
                done = waiting_line(f"Measured {event.measured} of {event.samples} samples at every K.", session.of)
                yield {**self._so_far(session, event.so_far), self.reading: done}
            else:
                calibration = event
        session.plots.pop(self.name, None)
        problem = engine.store(vlm).problem
        if problem is not None:
            gr.Warning(f"{problem}. It is forgotten when the server ends.")
        if calibration is None:
            sentence = "Stopped." if problem else "Stopped. What was measured is kept; the next time goes on there."
            yield {**self._so_far(session, engine.calibration(vlm)), self.reading: waiting_line(sentence, session.of)}
            return
        chosen = calibration.nearest_layer
        yield {
            layout.layer: gr.Slider(value=chosen, info=layer_info(vlm.layers, starting_layer(vlm), calibration)),
            **self._so_far(session, calibration),
        }
        yield from page.run_withdrawn(session, asked._replace(layer=chosen))

    def _so_far(self, session: Session, calibration: Calibration | None) -> Shown:
        """The calibration's curve, finished or not, with the divergence of the question that is shown."""
        swept = None if session.analysis is None else session.analysis.known(Part("sweep"))
        return {
            self.drawn: divergence_figure(swept, calibration),
            self.reading: reading_line(divergence_reading(swept, calibration), session.of),
        }
