"""Files to take away, made when they are asked for and handed to the browser: none of them stays on the server."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial

from vtw_demo.comparison.analysis import ALL_PARTS, Analysis, Part
from vtw_demo.comparison.machine import Machine
from vtw_demo.comparison.summary import verdict
from vtw_demo.errors import UserError
from vtw_demo.page.layout import Layout
from vtw_demo.page.lines import progress_line, verdict_line
from vtw_demo.page.sentences import Shown, in_sentences
from vtw_demo.page.session import Session
from vtw_demo.plots.attention_map import maps_png
from vtw_demo.plots.attention_map import parts as map_parts
from vtw_demo.plots.report import plot_html, report_data, report_html
from vtw_demo.plots.tab import Plot, View
from vtw_demo.plots.tabs import all_plots
from vtw_demo.server.engine import Engine

WRITING = "Writing it down; what hasn't been looked at yet is measured first."


class TakeAway:
    def __init__(self, layout: Layout, engine: Engine, machine: Machine) -> None:
        self.layout = layout
        self.engine = engine
        self.machine = machine
        self._in_sentences = partial(in_sentences, layout, engine.monitoring)

    def report(self, session: Session) -> Iterator[Shown]:
        """One HTML file with all of the comparison that is shown."""

        def make(analysis: Analysis) -> str:
            return report_html(analysis, self.engine.calibration, self.machine)

        yield from self._in_sentences(self._whole(session, "vtw-report.html", "text/html", make))

    def data(self, session: Session) -> Iterator[Shown]:
        """All numbers of the comparison that is shown, as one JSON file."""

        def make(analysis: Analysis) -> str:
            return json.dumps(report_data(analysis, self.engine.calibration, self.machine), indent=1)

        yield from self._in_sentences(self._whole(session, "vtw-comparison.json", "application/json", make))

    def tables(self, session: Session) -> Iterator[Shown]:
        """The numbers of every plot as CSV files, in one ZIP file."""

        def make(analysis: Analysis) -> bytes:
            plots, _ = all_plots(analysis, View(self.engine.calibration))
            content = io.BytesIO()
            with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
                for plot in plots:
                    archive.writestr(f"{plot.name}.csv", plot.table().to_csv())
            return content.getvalue()

        yield from self._in_sentences(self._whole(session, "vtw-numbers.zip", "application/zip", make))

    def plot_html(self, session: Session, name: str) -> Iterator[Shown]:
        """The plot of one section as an HTML file."""
        yield from self._in_sentences(self._plot(session, name, "html", "text/html", plot_html))

    def plot_csv(self, session: Session, name: str) -> Iterator[Shown]:
        """The numbers of one section's plot."""
        yield from self._in_sentences(self._plot(session, name, "csv", "text/csv", lambda p: p.table().to_csv()))

    def map_png(self, session: Session) -> Iterator[Shown]:
        """The attention maps of all layers on one sheet."""
        view = session.view(self.engine.calibration)
        make = partial(maps_png, view=view)
        yield from self._in_sentences(self._whole(session, "where-it-looks.png", "image/png", make, map_parts(view)))

    def _whole(
        self,
        session: Session,
        name: str,
        kind: str,
        make: Callable[[Analysis], str | bytes],
        parts: Sequence[Part] = ALL_PARTS,
    ) -> Iterator[Shown]:
        """Each measurement takes a turn of its own; the file is made while others use the model."""
        analysis, stop = session.analysis, session.measuring
        if analysis is None:
            raise UserError("There is nothing to take away yet: run a comparison first.")
        yield {self.layout.verdict: progress_line(WRITING)}
        for part in parts:
            with suppress(UserError):  # a part that this model's can't be known of: the file says so itself
                for place in self.engine.measure(session.visitor, analysis, part, stop, follows=True):
                    yield {self.layout.verdict: progress_line(str(place) if place.ahead else WRITING)}
        content = make(analysis)
        yield {
            self.layout.file: _file(name, kind, content),
            self.layout.verdict: verdict_line(verdict(analysis.comparison)),
        }

    def _plot(
        self, session: Session, name: str, suffix: str, kind: str, make: Callable[[Plot], str]
    ) -> Iterator[Shown]:
        if name not in session.plots:
            raise UserError("There is no plot here to take away yet.")
        yield {self.layout.file: _file(f"{name}.{suffix}", kind, make(session.plots[name]))}


def _file(name: str, kind: str, content: str | bytes) -> dict[str, str]:
    """What the script that saves it takes."""
    encoded = content.encode() if isinstance(content, str) else content
    return {"name": name, "type": kind, "content": base64.b64encode(encoded).decode()}
