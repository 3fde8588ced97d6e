"""The tab with a link to what is shown, and files that hold all of it."""

import io
import json
import zipfile
from functools import partial

import gradio as gr

from vtw_demo.comparison.analysis import Analysis
from vtw_demo.comparison.machine import this_machine
from vtw_demo.page.html import asset, note_line
from vtw_demo.page.page import Page
from vtw_demo.page.tabs.tab import PageTab
from vtw_demo.plots.report import report_data, report_html
from vtw_demo.plots.tab import View
from vtw_demo.plots.tabs import all_plots

HOW = (
    "Each tab has buttons for its own plot: PNG, interactive HTML, CSV. What hasn’t been looked at yet is measured "
    "first."
)


class TakeAwayTab(PageTab):
    name = "take-away"

    def __init__(self, page: Page) -> None:
        super().__init__(page)
        self.machine = this_machine()
        with gr.Tab("Take away", id=self.name) as self.opened:
            self.link = gr.Textbox(
                label="A link to this picture, question, K and model",
                info="Of your own picture a link has the question and K only: it isn't kept on the server.",
                interactive=False,
                buttons=["copy"],
                elem_id="link",
            )
            with gr.Row():
                self.report = gr.Button("Report: one HTML file that opens offline", size="sm", elem_id="take-report")
                self.data = gr.Button("All of it as JSON", size="sm", elem_id="take-data")
                self.tables = gr.Button("All numbers as CSV, in a ZIP file", size="sm", elem_id="take-tables")
            gr.HTML(note_line(HOW), padding=False)

    def connect(self) -> None:
        super().connect()
        page, layout = self.page, self.page.layout
        for button, name, media_type, make in (
            (self.report, "vtw-report.html", "text/html", self._report),
            (self.data, "vtw-comparison.json", "application/json", self._data),
            (self.tables, "vtw-numbers.zip", "application/zip", self._tables),
        ):
            take = partial(self.take, name=name, media_type=media_type, make=make)
            page.on_model(button.click, take, outputs=[layout.file])
        shown = [layout.model, layout.origin, layout.question, layout.layer]
        page.in_browser(layout.verdict.change, asset("link.js"), shown, [self.link])

    def _report(self, analysis: Analysis) -> str:
        return report_html(analysis, self.page.engine.calibration, self.machine)

    def _data(self, analysis: Analysis) -> str:
        return json.dumps(report_data(analysis, self.page.engine.calibration, self.machine), indent=1)

    def _tables(self, analysis: Analysis) -> bytes:
        plots, _ = all_plots(analysis, View(self.page.engine.calibration))
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            for plot in plots:
                archive.writestr(f"{plot.name}.csv", plot.table().to_csv())
        return content.getvalue()
