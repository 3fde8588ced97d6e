"""The tab with a link to what is shown, and files that hold all of it."""

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import gradio as gr

from vtw_demo.comparison.analysis import Analysis, all_parts
from vtw_demo.comparison.machine import this_machine
from vtw_demo.errors import UserError
from vtw_demo.page.html import asset, note_line, waiting_line
from vtw_demo.page.layout import COMPONENTS
from vtw_demo.page.page import Page, Shown
from vtw_demo.page.session import Session
from vtw_demo.page.tabs.tab import PageTab, download
from vtw_demo.plots.report import report_data, report_html
from vtw_demo.plots.tab import View
from vtw_demo.plots.tabs import all_plots
from vtw_demo.server.queue import StoppedError

HOW = (
    "Each tab has buttons for its own plot: PNG, interactive HTML, CSV. What hasn’t been looked at yet is measured "
    "first."
)
WRITING = "Writing it down; what hasn't been looked at yet is measured first."


class TakeAwayTab(PageTab):
    name = "take-away"

    def __init__(self, page: Page) -> None:
        super().__init__(page)
        self.machine = this_machine()
        with gr.Tab("Take away", id=self.name) as self.opened:
            self.link = gr.Textbox(**COMPONENTS["link"])
            with gr.Row():
                self.report = gr.Button("Report: one HTML file that opens offline", size="sm", elem_id="take-report")
                self.data = gr.Button("All of it as JSON", size="sm", elem_id="take-data")
                self.tables = gr.Button("All numbers as CSV, in a ZIP file", size="sm", elem_id="take-tables")
            self.note = gr.HTML(note_line(HOW), padding=False, elem_id="take-note")

    def connect(self) -> None:
        super().connect()
        page, layout = self.page, self.page.layout
        for button, name, make in (
            (self.report, "vtw-report.html", self._report),
            (self.data, "vtw-comparison.json", self._data),
            (self.tables, "vtw-numbers.zip", self._tables),
        ):
            take = partial(self.take, name=name, make=make)
            page.on_model(button.click, take, outputs=[layout.file, self.note], says=self.note)
        shown = [layout.model, layout.origin, layout.verdict]
        page.in_browser(layout.verdict.change, asset("link.js"), shown, [self.link])

    def take(self, session: Session, name: str, make: Callable[[Analysis], str | bytes]) -> Iterator[Shown]:
        """What `make` makes of the comparison that is shown, once all parts are measured, each in its own turn."""
        analysis, stop = session.analysis, session.measuring
        if analysis is None:
            raise UserError("There is nothing to take away yet: run a comparison first.")
        yield {self.note: waiting_line(WRITING)}
        try:
            for part in all_parts(analysis.comparison):
                with suppress(UserError):  # a part that this model's can't be known of: the file says so itself
                    for place in self.page.engine.measure(session.visitor, analysis, part, stop, follows=True):
                        yield {self.note: waiting_line(str(place) if place.ahead else WRITING)}
            yield {self.page.layout.file: download(name, make(analysis)), self.note: note_line(HOW)}
        except StoppedError:
            yield {self.note: waiting_line("Stopped: nothing was written.")}

    def _report(self, analysis: Analysis) -> str:
        return report_html(analysis, self.page.engine.calibration(analysis.vlm), self.machine)

    def _data(self, analysis: Analysis) -> str:
        return json.dumps(report_data(analysis, self.page.engine.calibration(analysis.vlm), self.machine), indent=1)

    def _tables(self, analysis: Analysis) -> bytes:
        plots, _ = all_plots(analysis, View(self.page.engine.calibration(analysis.vlm)))
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            for plot in plots:
                archive.writestr(f"{plot.name}.csv", plot.table().to_csv())
        return content.getvalue()
