"""The tab of the visitor's comparisons, two of which are laid over each other."""

import threading
from collections.abc import Iterator, Sequence
from functools import partial

import gradio as gr

from vtw_demo.comparison.analysis import Analysis, Part
from vtw_demo.page.html import history_table, in_a_cell, reading_line
from vtw_demo.page.page import Page, Shown
from vtw_demo.page.session import PastComparison, Session
from vtw_demo.page.tabs.tab import PageTab
from vtw_demo.plots.overlay import overlay_figure, overlay_reading

TWO_NEEDED = "Two comparisons of yours are overlaid here: choose two."


class HistoryTab(PageTab):
    name = "history"

    def __init__(self, page: Page) -> None:
        super().__init__(page)
        with gr.Tab("History", id=self.name) as self.opened:
            self.table = self.shows(gr.HTML(padding=False, elem_id="history-table"))
            with gr.Row(elem_classes="controls"):
                self.first = self.shows(gr.Dropdown([], label="Overlay", min_width=200, elem_id="first-past"))
                self.second = self.shows(gr.Dropdown([], label="with", min_width=200, elem_id="second-past"))
            self.reading = gr.HTML(reading_line(TWO_NEEDED), padding=False, elem_id="overlay-reading")
            self.drawn = gr.Plot(show_label=False, container=False, elem_id="overlay")

    def connect(self) -> None:
        super().connect()
        chosen = [self.page.layout.session, self.first, self.second]
        shown = [self.drawn, self.reading, self.page.layout.verdict]
        changed = partial(gr.on, [self.first.change, self.second.change])
        self.page.at_once(changed, self.overlay, chosen, shown, says=self.reading)

    def compared(self, session: Session, analysis: Analysis, stop: threading.Event) -> Iterator[Shown]:
        """The comparison is remembered, with what its overlay shows."""
        for part in (Part("sweep"), Part("attention", "full"), Part("attention", "withdrawn")):
            yield from self.page.followed(session, analysis, part, stop)
        full, withdrawn = analysis.of("attention", "full"), analysis.of("attention", "withdrawn")
        session.remember(analysis.comparison, full, withdrawn, analysis.of("sweep").kl)
        yield self.listed(session)

    def restored(self, session: Session) -> Shown:
        # Not when the tab is opened: the answer to that might bring an older list after a run's newer one.
        return self.listed(session)

    def listed(self, session: Session) -> Shown:
        listed = choices(session.history)
        latest: list[int | None] = [number for _, number in listed[-2:]] or [None]
        return {
            self.table: history_table(session.history),
            self.first: gr.Dropdown(listed, value=latest[0]),
            self.second: gr.Dropdown(listed, value=latest[-1]),
        }

    def overlay(self, session: Session, first: int | None, second: int | None) -> Iterator[Shown]:
        pair = session.past(first), session.past(second)
        if pair[0] is None or pair[1] is None or pair[0] is pair[1]:
            yield {self.reading: reading_line(TWO_NEEDED)}
            return
        overlaid = pair[0].overlaid, pair[1].overlaid
        yield {self.drawn: overlay_figure(*overlaid), self.reading: reading_line(overlay_reading(*overlaid))}


def choices(history: Sequence[PastComparison]) -> list[tuple[str, int]]:
    return [
        (f"{past.number}: K = {past.comparison.layer}, {in_a_cell(past.comparison.question)}", past.number)
        for past in history
    ]
