"""The tab of times, which are measured again in rounds when that is asked for."""

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from vtw_demo.comparison.repeated_timing import MAXIMUM_ROUNDS
from vtw_demo.page.html import note_line, waiting_line
from vtw_demo.page.layout import COMPONENTS
from vtw_demo.page.page import Asked, Shown
from vtw_demo.page.session import Session
from vtw_demo.page.tabs.tab import PlottedTab
from vtw_demo.server.query import whole_number
from vtw_demo.server.queue import Place

MEMORY_NOTE = "Peak memory is measured on GPUs only: this model runs on a CPU."
DRAWN_SECONDS = 0.5  # after which what is measured so far is drawn anew


class TimingTab(PlottedTab):
    def lay_out_controls(self) -> None:
        with gr.Row(elem_classes="controls"):
            self.rounds = gr.Number(10, maximum=MAXIMUM_ROUNDS, **COMPONENTS["rounds"])
            self.again = gr.Button("Measure again", size="sm", min_width=120, elem_id="time-again")

    def lay_out_notes(self) -> None:
        if self.page.engine.vlm.device.type != "cuda":
            gr.HTML(note_line(MEMORY_NOTE), padding=False)

    def connect(self) -> None:
        super().connect()
        self.page.run_after(self.again.click, self.time_again, self.rounds, named="measuring again", says=self.reading)

    def time_again(self, session: Session, asked: Asked, rounds: Any) -> Iterator[Shown]:
        """Both runs again and again, interleaved, after a comparison where there is none of this query."""
        page, stop = self.page, session.stop
        query, rounds = asked.query(page.vlm(session, asked)), whole_number("number of rounds", rounds)
        yield from page.compared(session, asked, query)
        analysis, made = session.analysis, 0
        if analysis is None:
            yield {self.reading: waiting_line("Stopped before the first round.")}
            return
        session.look_at(self.name)
        drawn_at = 0.0
        for event in page.engine.repeat_timing(session.visitor, analysis, rounds, stop):
            if isinstance(event, Place):
                yield {self.reading: waiting_line(str(event))}
                continue
            made = event.rounds
            # A browser that draws each of a hundred quick rounds hears no click on Stop.
            if time.monotonic() - drawn_at > DRAWN_SECONDS:
                # What is drawn is measured already: it must not wait for this turn's own end.
                drawn = self.show(session, self.plot(session, analysis))
                done = waiting_line(f"Measured {made} of {rounds} rounds of both runs.", session.of)
                yield {**drawn, self.reading: done}
                drawn_at = time.monotonic()
        if session.analysis is analysis:
            yield {**page.answered(session), **self.show(session, self.plot(session, analysis))}
        if made < rounds:
            yield {self.reading: waiting_line(f"Stopped after {made} of {rounds} rounds.", session.of)}
