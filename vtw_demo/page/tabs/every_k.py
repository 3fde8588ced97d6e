"""The tab in which a question is answered at every K of a range."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.page.html import answers_table, waiting_line
from vtw_demo.page.page import Asked, Shown
from vtw_demo.page.session import Session
from vtw_demo.page.tabs.tab import PlottedTab
from vtw_demo.server.query import layer_range
from vtw_demo.server.queue import Place


class EveryKTab(PlottedTab):
    nothing_yet = "Both the answers and their times, for every K of the range."

    def lay_out_controls(self) -> None:
        last = self.page.engine.vlm.layers - 1
        with gr.Row(elem_classes="controls"):
            self.first_layer = gr.Number(1, label="from K", precision=0, min_width=80, elem_id="first-layer")
            self.last_layer = gr.Number(last, label="to K", precision=0, min_width=80, elem_id="last-layer")
            self.answer = gr.Button("Answer at every K", size="sm", min_width=140, elem_id="answer-all")
        self.table = self.shows(gr.HTML(padding=False, elem_id="answers-table"))

    def connect(self) -> None:
        super().connect()
        asked = self.first_layer, self.last_layer
        named = "answering at every K"
        self.page.run_after(self.answer.click, self.answer_at_layers, *asked, named=named, says=self.reading)

    def about_model(self, vlm: VisionLanguageModel) -> Shown:
        return {self.last_layer: vlm.layers - 1}

    def answer_at_layers(self, session: Session, asked: Asked, first_layer: Any, last_layer: Any) -> Iterator[Shown]:
        """The query answered at every K of the range, after a comparison where there is no full run of it yet."""
        page, stop = self.page, session.stop
        vlm = page.vlm(session, asked)
        query, layers = asked.query(vlm), layer_range(first_layer, last_layer, vlm.layers)
        yield from page.compared(session, asked, query)
        earlier = session.earlier(query)
        if earlier is None:
            yield {self.reading: waiting_line("Stopped before the first answer.")}
            return
        full, answers = earlier.comparison.full, []
        for answer in page.engine.answer_at_layers(
            session.visitor, vlm, earlier.prompt, layers, full, query.max_new_tokens, stop
        ):
            if isinstance(answer, Place):
                yield {self.reading: waiting_line(str(answer))}
                continue
            answers.append(answer)
            done = waiting_line(f"Answered at K = {answer.layer}, {len(answers)} of {len(layers)}.", asked.of)
            yield {self.reading: done, self.table: answers_table(full, answers, is_complete=False), self.drawn: None}
        if len(answers) == len(layers):
            plot = self.tab.plot_of(full, answers)
            table = answers_table(full, answers, is_complete=True)
            yield {self.table: table, **self.show(session, plot)}
        else:
            said = f"Stopped after {len(answers)} of {len(layers)} answers."
            yield {self.reading: waiting_line(said, asked.of)}
