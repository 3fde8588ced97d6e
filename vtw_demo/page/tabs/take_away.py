"""The tab with a link to what is shown, and files that hold all of it."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator

import gradio as gr

from vtw_demo.comparison.analysis import Analysis
from vtw_demo.comparison.machine import this_machine
from vtw_demo.page.downloads import take_whole
from vtw_demo.page.html import note_line
from vtw_demo.page.layout import script
from vtw_demo.page.page import Page, Shown
from vtw_demo.page.session import Session
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
        with gr.Tab("Take away", id=self.name):
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
        page, layout = self.page, self.page.layout
        page.on_model(self.report.click, self.take_report, "take_report")
        page.on_model(self.data.click, self.take_data, "take_data")
        page.on_model(self.tables.click, self.take_tables, "take_tables")
        shown = [layout.model, layout.origin, layout.question, layout.layer]
        page.in_browser(layout.verdict.change, script("link.js"), shown, [self.link])

    def take_report(self, session: Session) -> Iterator[Shown]:
        """One HTML file with all of the comparison that is shown."""

        def make(analysis: Analysis) -> str:
            return report_html(analysis, self.page.engine.calibration, self.machine)

        yield from take_whole(self.page, session, "vtw-report.html", "text/html", make)

    def take_data(self, session: Session) -> Iterator[Shown]:
        """All numbers of the comparison that is shown, as one JSON file."""

        def make(analysis: Analysis) -> str:
            return json.dumps(report_data(analysis, self.page.engine.calibration, self.machine), indent=1)

        yield from take_whole(self.page, session, "vtw-comparison.json", "application/json", make)

    def take_tables(self, session: Session) -> Iterator[Shown]:
        """The numbers of every plot as CSV files, in one ZIP file."""

        def make(analysis: Analysis) -> bytes:
            plots, _ = all_plots(analysis, View(self.page.engine.calibration))
            content = io.BytesIO()
            with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
                for plot in plots:
                    archive.writestr(f"{plot.name}.csv", plot.table().to_csv())
            return content.getvalue()

        yield from take_whole(self.page, session, "vtw-numbers.zip", "application/zip", make)
