"""The tab in which the conversation goes on with a second question about the same picture."""

import threading
from collections.abc import Iterator
from typing import Any

import gradio as gr

from vtw_demo.comparison.analysis import Analysis
from vtw_demo.comparison.compare import RunProgress
from vtw_demo.comparison.follow_up import FollowUp
from vtw_demo.page.html import reading_line, waiting_line
from vtw_demo.page.layout import COMPONENTS
from vtw_demo.page.page import Asked, Shown
from vtw_demo.page.session import Session
from vtw_demo.page.tabs.tab import PlottedTab
from vtw_demo.plots.second_question import NAMES
from vtw_demo.server.query import LONGEST_QUESTION, read_asked
from vtw_demo.server.queue import Place


class SecondQuestionTab(PlottedTab):
    nothing_yet = "What each run says with the KV cache that its first answer left, and what a fresh prefill says."

    def lay_out_controls(self) -> None:
        with gr.Row(elem_classes="controls"):
            self.question = gr.Textbox(max_length=LONGEST_QUESTION, **COMPONENTS["second-question-text"])
            self.ask = gr.Button("Ask on", size="sm", scale=0, min_width=100, elem_id="ask-on")

    def connect(self) -> None:
        super().connect()
        for event in (self.ask.click, self.question.submit):
            self.page.run_after(event, self.ask_on, self.question, named="the second question", says=self.reading)

    def compared(self, session: Session, analysis: Analysis, stop: threading.Event) -> Iterator[Shown]:
        """Another comparison's conversation hasn't gone on."""
        if session.analysis is analysis and analysis.follow_up is None:
            yield {self.reading: reading_line(self.nothing_yet), self.drawn: ""}

    def ask_on(self, session: Session, asked: Asked, question: Any) -> Iterator[Shown]:
        """The second question, after a comparison where there is none of the first one at this K."""
        page, stop, further = self.page, session.stop, read_asked(question)
        query = asked.query(page.vlm(session, asked))
        yield from page.compared(session, asked, query)
        analysis, found = session.analysis, None
        if analysis is None:
            yield {self.reading: waiting_line("Stopped before the first question's answers.")}
            return
        session.look_at(self.name)
        for event in page.engine.ask_on(session.visitor, analysis, further, query.max_new_tokens, stop):
            if isinstance(event, FollowUp):
                found = event
            elif isinstance(event, Place):
                yield {self.reading: waiting_line(str(event))}
            elif isinstance(event, RunProgress):
                said = f"{NAMES[event.run].format(K=analysis.layer)}: {event.text}"
                yield {self.reading: waiting_line(said, asked.of)}
        if found is None:
            yield {self.reading: waiting_line("Stopped before all answers were complete.", asked.of)}
        elif session.analysis is analysis:
            yield self.show(session, self.plot(session, analysis))
