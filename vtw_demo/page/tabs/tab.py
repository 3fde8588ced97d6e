"""A tab: its components are made with it, `connect` binds their events.

Files that are taken away are made when they are asked for and handed to the browser: none of them stays on the server.
"""

import base64
import itertools
import mimetypes
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, TypeVar

import gradio as gr

from vtw_demo.comparison.analysis import Analysis
from vtw_demo.errors import UserError
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.page.html import asset, problem_line, reading_line, waiting_line
from vtw_demo.page.page import Page, Shown
from vtw_demo.page.session import Session
from vtw_demo.plots.report import plot_html
from vtw_demo.plots.tab import Plot, Tab
from vtw_demo.server.queue import StoppedError

Component = TypeVar("Component")
MEASURING = "Measuring, in a pass that no timing includes."
QUICK_SECONDS = 0.25  # a tab that is left within them isn't measured
# Words of two clicks may come in the other order: each says when it was, in ms since the page came.
CLICKED = "(session) => [session, performance.now()]"
_numbers = itertools.count()


def download(name: str, content: str | bytes) -> dict[str, str | int | None]:
    """What the script that saves a file takes. Its number makes the same file, taken twice, a new value."""
    encoded = content.encode() if isinstance(content, str) else content
    media_type, _ = mimetypes.guess_type(name)
    return {"number": next(_numbers), "name": name, "type": media_type, "content": base64.b64encode(encoded).decode()}


class PageTab:
    """A tab without a plot. What a subclass makes, inside a `gr.Tabs`, it keeps as its attributes."""

    name = ""
    opened: gr.Tab

    def __init__(self, page: Page) -> None:
        self.page = page
        self.shown: list[Any] = []
        """The components that steps on the model may give new values."""

    def shows(self, component: Component) -> Component:
        self.shown.append(component)
        return component

    def connect(self) -> None:
        """Bind the events, once all tabs are made."""
        self._at_opening(None)

    def _at_opening(self, outputs: Any) -> Any:
        layout = self.page.layout
        return self.page.at_once(self.opened.select, self._open, [layout.session, layout.clicked], outputs, js=CLICKED)

    def _open(self, session: Session, since: float) -> Any:
        session.look_at(self.name, since)

    def about_model(self, vlm: VisionLanguageModel) -> Shown:
        """What changes with the model."""
        return {}

    def restored(self, session: Session) -> Shown:
        """What the browser has kept of an earlier visit."""
        return {}

    def compared(self, session: Session, analysis: Analysis, stop: threading.Event) -> Iterator[Shown]:
        """What follows a comparison, whichever tab is in view."""
        yield from ()

    def draw(self, session: Session, comparison: threading.Event | None = None) -> Iterator[Shown]:
        """What the tab shows when it is in view, unless it is drawn already; as part of a comparison, with its stop."""
        yield from ()


class PlottedTab(PageTab):
    """A plot with its sentence and buttons that take it away, measured when the tab is first opened."""

    nothing_yet = "Shown once a question has been answered."
    has_png = False
    """Whether there is a PNG of what is drawn as HTML; of a figure there always is."""

    def __init__(self, page: Page, tab: Tab) -> None:
        super().__init__(page)
        self.tab = tab
        self.name = tab.name
        with gr.Tab(tab.label, id=tab.name) as self.opened:
            self.lay_out_controls()
            with gr.Row(elem_classes="section-head"):
                reading = gr.HTML(reading_line(self.nothing_yet), padding=False, elem_id=f"{tab.name}-reading")
                self.reading = self.shows(reading)
                with gr.Row(elem_classes="take"):
                    kinds = ("html", "csv") if tab.is_html and not self.has_png else ("png", "html", "csv")
                    self.buttons = {
                        kind: gr.Button(kind.upper(), size="sm", min_width=50, elem_id=f"{tab.name}-{kind}")
                        for kind in kinds
                    }
            self.drawn: Any = self.shows(
                gr.HTML(padding=False, elem_id=tab.name)
                if tab.is_html
                else gr.Plot(show_label=False, container=False, elem_id=tab.name)
            )
            self.lay_out_notes()

    def lay_out_controls(self) -> None:
        """What stands above the plot."""

    def lay_out_notes(self) -> None:
        """What stands below it."""

    def show_controls(self, session: Session) -> Shown:
        """The controls, which change with what is drawn."""
        return {}

    def connect(self) -> None:
        page, layout = self.page, self.page.layout
        page.on_model(self._at_opening([self.reading]).then, self._draw_in_view, outputs=self.shown)
        for kind, button in self.buttons.items():
            if kind == "png" and not self.tab.is_html:
                page.in_browser(button.click, asset("plot_png.js").replace("NAME", self.name))
            else:
                take = partial(self._take, kind=kind)
                page.at_once(button.click, take, [layout.session], [layout.file, layout.verdict])

    def _open(self, session: Session, since: float) -> Any:
        super()._open(session, since)
        return waiting_line(MEASURING) if self._is_to_be_drawn(session) else gr.skip()

    def _is_to_be_drawn(self, session: Session) -> bool:
        analysis = session.analysis
        return analysis is not None and self.tab.is_there(analysis) and self.name not in session.plots

    def _take(self, session: Session, kind: str) -> Iterator[Shown]:
        if self.name not in session.plots:
            raise UserError("There is no plot here to take away yet.")
        yield {self.page.layout.file: download(f"{self.name}.{kind}", self.content(session, kind))}

    def content(self, session: Session, kind: str) -> str | bytes:
        """Of the file that is taken away."""
        plot = session.plots[self.name]
        return plot_html(plot) if kind == "html" else plot.table().to_csv()

    def draw(self, session: Session, comparison: threading.Event | None = None) -> Iterator[Shown]:
        engine, analysis, left, fault = self.page.engine, session.analysis, session.left, None
        if analysis is None or not self._is_to_be_drawn(session):
            return
        try:
            for part in self.tab.parts(analysis.comparison, session.view(engine.calibration(analysis.vlm))):
                for place in engine.measure(session.visitor, analysis, part, left, follows=comparison is not None):
                    yield {self.reading: waiting_line(str(place) if place.ahead else MEASURING)}
            if left.is_set():
                raise StoppedError
            plot = self.plot(session, analysis)
        except StoppedError:
            if session.left is left:
                yield {self.reading: waiting_line("Stopped: open this tab again to measure it.")}
            if comparison is not None and comparison.is_set():
                raise
            return
        except Exception as error:  # this model's can't be known, or it went wrong: the other tabs still can
            fault = engine.monitoring.fault_of(error)
        if fault is not None:
            yield {self.reading: problem_line(fault.sentence), self.drawn: None, **self.show_controls(session)}
        elif session.analysis is analysis:  # no other comparison came meanwhile
            yield {**self.show(session, plot), **self.show_controls(session)}

    def _draw_in_view(self, session: Session) -> Iterator[Shown]:
        if self._is_to_be_drawn(session) and session.open_tab == self.name and not session.left.wait(QUICK_SECONDS):
            yield from self.draw(session)

    def plot(self, session: Session, analysis: Analysis) -> Plot:
        return self.tab.plot(analysis, session.view(self.page.engine.calibration(analysis.vlm)))

    def redraw(self, session: Session) -> Iterator[Shown]:
        session.look_at(self.name)
        session.plots.pop(self.name, None)
        yield from self.draw(session)

    def show(self, session: Session, plot: Plot) -> Shown:
        session.plots[self.name] = plot
        return {self.reading: reading_line(plot.reading, session.of), self.drawn: plot.drawing}
