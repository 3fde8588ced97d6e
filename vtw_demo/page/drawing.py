"""The sections' plots: each is measured and drawn when its tab is first opened for a comparison."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import gradio as gr

from vtw_demo.comparison.analysis import Part
from vtw_demo.comparison.calibration import Calibration
from vtw_demo.page import sections as names
from vtw_demo.page.layout import Layout
from vtw_demo.page.lines import problem_line, reading_line, waiting_line
from vtw_demo.page.sentences import Shown
from vtw_demo.page.session import Session
from vtw_demo.page.token_strip import strip_html
from vtw_demo.plots.divergence import divergence_figure, divergence_reading
from vtw_demo.plots.tab import LAST_PROMPT, Plot, Tab
from vtw_demo.plots.tabs import TABS
from vtw_demo.server.engine import Engine
from vtw_demo.server.queue import StoppedError

MEASURING = "Measuring, in a pass that no timing includes."


class Drawing:
    def __init__(self, layout: Layout, engine: Engine) -> None:
        self.layout = layout
        self.sections = layout.sections
        self.engine = engine

    def open(self, session: Session, name: str) -> Any:
        """The tab `name` is in view: say in place of its sentence that it is being measured, unless it is drawn."""
        session.open_section = name
        if name in session.plots or self._tab(session) is None:
            return gr.skip()
        return waiting_line(MEASURING)

    def draw(self, session: Session, comparison: threading.Event | None = None) -> Iterator[Shown]:
        """The section in view, unless it is drawn already; as part of a comparison, with its stop."""
        tab, analysis, stop = self._tab(session), session.analysis, comparison or session.measuring
        if tab is None or analysis is None or tab.name in session.plots:
            # Without a step Gradio would empty every output.
            yield {self.layout.verdict: gr.skip()}
            return
        section = self.sections.named(tab.name)
        view, fault = session.view(self.engine.calibration), None
        try:
            for part in tab.parts(view):
                for place in self.engine.measure(session.visitor, analysis, part, stop, follows=stop is comparison):
                    yield {section.reading: waiting_line(str(place) if place.ahead else MEASURING)}
            plot = tab.plot(analysis, view)
        except StoppedError:
            raise
        except Exception as error:  # this model's can't be known, or it went wrong: the other sections still can
            fault = self.engine.monitoring.fault_of(error)
        if fault is not None:
            yield {section.reading: problem_line(fault.sentence), section.drawn: None, **self.strips(session)}
            return
        if session.analysis is not analysis:  # another comparison came meanwhile
            yield {self.layout.verdict: gr.skip()}
            return
        session.plots[tab.name] = plot
        yield {**self.show(plot), **self.strips(session)}

    def redraw(self, session: Session) -> Iterator[Shown]:
        """The section in view, of which something else is to be shown."""
        session.plots.pop(session.open_section, None)
        yield from self.draw(session)

    def show(self, plot: Plot) -> Shown:
        section = self.sections.named(plot.name)
        drawn = plot.html if plot.figure is None else plot.figure
        return {section.reading: reading_line(plot.reading), section.drawn: drawn}

    def strips(self, session: Session) -> Shown:
        """The buttons that choose whose attention is shown."""
        analysis = session.analysis
        if analysis is None:
            return {}
        token = LAST_PROMPT if session.map_token is None else session.map_token
        return {
            self.sections.attention_strip: strip_html(analysis, session.attention_query, has_mean=True),
            self.sections.map_strip: strip_html(analysis, token, has_mean=False),
        }

    def show_calibration(self, session: Session, calibration: Calibration | None) -> Shown:
        """The calibration's curve, finished or not, with the divergence of the question that is shown."""
        swept = None if session.analysis is None else session.analysis.known(Part("sweep"))
        section = self.sections.named(names.CHOOSE_K)
        return {
            section.drawn: divergence_figure(calibration, swept),
            section.reading: reading_line(divergence_reading(calibration, swept)),
        }

    def _tab(self, session: Session) -> Tab | None:
        """The tab in view; None where there is nothing to draw, or it is drawn by its own button."""
        if session.analysis is None:
            return None
        return next((tab for tab in TABS if tab.name == session.open_section), None)
