"""The sections' plots: each is measured and drawn when its tab is first opened for a comparison."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gradio as gr

from vtw_demo.comparison.analysis import Examination
from vtw_demo.comparison.calibration import Calibration
from vtw_demo.page import sections as names
from vtw_demo.page.layout import Layout
from vtw_demo.page.lines import problem_line, reading_line, waiting_line
from vtw_demo.page.sentences import Shown, told
from vtw_demo.page.session import Session
from vtw_demo.page.token_strip import strip_html
from vtw_demo.plots import tabs as plots
from vtw_demo.plots.divergence import divergence_figure, divergence_reading
from vtw_demo.plots.tabs import Plot
from vtw_demo.server.engine import Engine
from vtw_demo.server.queue import Place, StoppedError

MEASURING = "Measuring, in a pass that no timing includes."


class Drawing:
    def __init__(self, layout: Layout, engine: Engine) -> None:
        self.layout = layout
        self.sections = layout.sections
        self.engine = engine

    def open(self, session: Session, name: str) -> Any:
        """The tab `name` is in view: say in place of its sentence that it is being measured, unless it is drawn."""
        session.open_section = name
        if name in session.plots or self._plot(session, name) is None:
            return gr.skip()
        return waiting_line(MEASURING)

    def draw(self, session: Session, comparison: threading.Event | None = None) -> Iterator[Shown]:
        """The section in view, unless it is drawn already; as part of a comparison, with its stop."""
        name, examination, stop = session.open_section, session.examination, comparison or session.measuring
        make = self._plot(session, name)
        if make is None or name in session.plots:
            # Without a step Gradio would empty every output.
            yield {self.layout.verdict: gr.skip()}
            return
        section = self.sections.named(name)

        def show(place: Place) -> Shown:
            return {section.reading: waiting_line(MEASURING if not place.ahead else str(place))}

        assert examination is not None  # there is nothing to make of none
        vlm, follows = examination.full.vlm, stop is comparison
        fault = None
        try:
            plot = yield from told(show, self.engine.measure(session.visitor, vlm, make, stop, follows=follows))
        except StoppedError:
            raise
        except Exception as error:  # this model's can't be known, or it went wrong: the other sections still can
            fault = self.engine.monitoring.fault_of(error)
        if fault is not None:
            yield {section.reading: problem_line(fault.sentence), section.drawn: None, **self.strips(session)}
            return
        if session.examination is not examination:  # another comparison came meanwhile
            yield {self.layout.verdict: gr.skip()}
            return
        session.plots[name] = plot
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
        examination = session.examination
        if examination is None:
            return {}
        token = plots.LAST_PROMPT if session.map_token is None else session.map_token
        return {
            self.sections.attention_strip: strip_html(examination, session.attention_query, has_mean=True),
            self.sections.map_strip: strip_html(examination, token, has_mean=False),
        }

    def show_calibration(self, session: Session, calibration: Calibration | None) -> Shown:
        """The calibration's curve, finished or not, with the divergence of the question that is shown."""
        swept = None if session.examination is None else session.examination.full.sweep_so_far
        section = self.sections.named(names.CHOOSE_K)
        return {
            section.drawn: divergence_figure(calibration, swept),
            section.reading: reading_line(divergence_reading(calibration, swept)),
        }

    def _plot(self, session: Session, name: str) -> Callable[[], Plot] | None:
        """What makes a section's plot; None where there is nothing to draw, or it is drawn by its own button."""
        examination = session.examination
        if examination is None:
            return None
        return _makers(session, examination, self.engine.calibration).get(name)


def _makers(
    session: Session, examination: Examination, calibration: Calibration | None
) -> dict[str, Callable[[], Plot]]:
    return {
        names.ATTENTION: partial(plots.attention_plot, examination, session.attention_query),
        names.WHERE_IT_LOOKS: partial(plots.attention_map_plot, examination, session.map_token),
        names.MIGRATION: partial(plots.migration_plot, examination),
        names.STAIRCASE: partial(plots.staircase_plot, examination, session.surface),
        names.TIMING: partial(plots.timing_plot, examination),
        names.CHOOSE_K: partial(plots.divergence_plot, examination, calibration),
        names.WORDS: partial(plots.words_plot, examination, calibration),
        names.DIFFERENCES: partial(plots.differences_plot, examination),
    }
