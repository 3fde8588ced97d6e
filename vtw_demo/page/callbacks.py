"""What the page does: callbacks between the layout's components and the engine."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import gradio as gr

from vtw_demo.calibration import CalibrationProgress
from vtw_demo.compare import Comparison, RunFinished, RunProgress
from vtw_demo.examination import Examination, FullExamination
from vtw_demo.figures.overlay import overlay_figure, overlay_reading
from vtw_demo.figures.staircase import SURFACES
from vtw_demo.machine import this_machine
from vtw_demo.page import sections as names
from vtw_demo.page.answers_table import answers_table
from vtw_demo.page.drawing import Drawing
from vtw_demo.page.engine import Engine
from vtw_demo.page.examples import GENERAL_QUESTIONS, Example, random_example
from vtw_demo.page.history import history_choices, history_table, past_comparison
from vtw_demo.page.layout import (
    CALIBRATION_SAMPLES,
    LONGEST_QUESTION,
    Layout,
    default_layer,
    layer_info,
)
from vtw_demo.page.lines import header, problem_line, progress_line, reading_line, verdict_line
from vtw_demo.page.links import restore
from vtw_demo.page.query import Query, layer_range, read_threshold, whole_number
from vtw_demo.page.sentences import Shown, in_sentences
from vtw_demo.page.session import Session
from vtw_demo.page.token_strip import read_choice
from vtw_demo.report.answer_cards import AnswerCard
from vtw_demo.report.data import report_data
from vtw_demo.report.plots import answers_plot, timing_plot
from vtw_demo.verdict import verdict

logger = logging.getLogger(__name__)


class Asked(NamedTuple):
    """What a visitor asks for, as the browser sends it: nothing of it is checked yet."""

    picture: Any
    question: Any
    layer: Any
    max_new_tokens: Any

    def query(self) -> Query:
        """Raises ValueError, in a sentence for people."""
        return Query.read(self.picture, self.question, self.layer, self.max_new_tokens)


class Callbacks:
    def __init__(self, layout: Layout, engine: Engine, examples: Sequence[Example], first_layer: int | None) -> None:
        self.layout = layout
        self.sections = layout.sections
        self.engine = engine
        self.examples = examples
        self.first_layer = first_layer
        self.generator = random.Random()
        self.drawing = Drawing(layout, engine)

    def start(self, request: gr.Request) -> Shown:
        """What a new visitor sees: what their link says, and the slider as somebody may have calibrated it since."""
        layout, layers, calibration = self.layout, self.engine.vlm.layers, self.engine.calibration
        restored = restore(
            dict(request.query_params), self.examples, self.engine.vlm.name, layers, longest_question=LONGEST_QUESTION
        )
        first = restored.layer or self.first_layer or default_layer(layers, calibration)
        shown: Shown = {layout.layer: gr.Slider(value=first, info=layer_info(layers, calibration))}
        if restored.picture is not None:
            shown |= {layout.picture: restored.picture, layout.origin: restored.origin}
            shown |= {layout.suggestions: _suggestions(restored.suggestions)}
        if restored.question is not None:
            shown[layout.question] = restored.question
        if restored.problems:
            shown[layout.note] = gr.HTML(problem_line(" ".join(restored.problems)), visible=True)
        return shown

    def begin(self, session: Session) -> str:
        session.begin()
        return progress_line("Waiting for the model.")

    def stop(self, session: Session) -> None:
        session.stop.set()

    def run(self, session: Session, *asked: Any) -> Iterator[Shown]:
        """Both runs, then what was measured."""
        session.forget()
        yield from self.run_withdrawn(session, *asked)

    def run_withdrawn(self, session: Session, *asked: Any) -> Iterator[Shown]:
        """The withdrawn run beside the visitor's earlier full run; both where picture, question or cap are others."""
        yield from in_sentences(self.layout, self._run(session, Asked(*asked)))

    def calibrate(self, session: Session, *asked: Any) -> Iterator[Shown]:
        """Measure the divergence on a few samples, set the slider by it, and rerun the withdrawn side."""
        *query, threshold = asked
        yield from in_sentences(self.layout, self._calibrate(session, Asked(*query), threshold))

    def answer_at_layers(self, session: Session, *asked: Any) -> Iterator[Shown]:
        """The query answered at every K of the range, after a comparison where there is no full run of it yet."""
        *query, first_layer, last_layer = asked
        yield from in_sentences(self.layout, self._answer_at_layers(session, Asked(*query), first_layer, last_layer))

    def time_again(self, session: Session, *asked: Any) -> Iterator[Shown]:
        """Both runs again and again, interleaved, after a comparison where there is none of this query."""
        *query, rounds = asked
        yield from in_sentences(self.layout, self._time_again(session, Asked(*query), rounds))

    def open(self, session: Session, name: str) -> Any:
        """The tab `name` is in view."""
        return self.drawing.open(session, name)

    def draw(self, session: Session) -> Iterator[Shown]:
        """The section in view, unless it is drawn already."""
        yield from in_sentences(self.layout, self.drawing.draw(session))

    def choose_attention(self, session: Session, chosen: gr.EventData) -> Iterator[Shown]:
        yield from in_sentences(self.layout, self._choose_attention(session, chosen.query))

    def choose_map(self, session: Session, chosen: gr.EventData) -> Iterator[Shown]:
        yield from in_sentences(self.layout, self._choose_map(session, chosen.query))

    def choose_surface(self, session: Session, surface: str) -> Iterator[Shown]:
        if surface in SURFACES:
            session.surface = surface
            yield from in_sentences(self.layout, self.drawing.redraw(session))

    def _run(self, session: Session, asked: Asked) -> Iterator[Shown]:
        layout, stop, query = self.layout, session.stop, asked.query()
        earlier = session.earlier_full(query)
        comparison = None
        session.hide()
        yield {
            layout.verdict: progress_line("Running."),
            **({} if earlier else {layout.full: AnswerCard("full", query.layer, is_running=True).to_html()}),
            layout.withdrawn: AnswerCard("withdrawn", query.layer, is_running=bool(earlier)).to_html(),
        }
        for event in self.engine.compare(query, full=earlier.run if earlier else None, stop=stop):
            if isinstance(event, RunProgress):
                answer = AnswerCard(event.run, query.layer, event.text, event.new_tokens, is_running=True)
                yield {self._card(event.run): answer.to_html()}
            elif isinstance(event, RunFinished):
                yield {self._card(event.run): AnswerCard(event.run, query.layer, result=event.result).to_html()}
            else:
                comparison = event
        if comparison is None:
            # A newer request of this visitor may have stopped this one, and says itself what goes on.
            if stop is session.stop:
                yield {layout.verdict: progress_line("Stopped before both answers were complete.")}
            return
        full = earlier or FullExamination(self.engine.vlm, query.picture, query.question, comparison.full)
        examination = Examination(full, comparison)
        session.show(query, examination)
        yield {layout.verdict: verdict_line(verdict(comparison)), layout.header: _header(comparison)}
        yield from self.drawing.draw(session)
        if not earlier:
            swept = self.engine.measure(lambda: full.sweep)
            yield {layout.swept: {**swept.to_json(), "question": query.question.strip()}}
        yield self._remember(session, examination)

    def _remember(self, session: Session, examination: Examination) -> Shown:
        """The comparison, in the visitor's history."""
        comparison, full = examination.comparison, examination.full
        masses = self.engine.measure(lambda: (full.attention, examination.attention))
        session.remember(comparison, *masses, full.sweep.kl)
        choices = history_choices(session.history)
        latest = [value for _, value in choices[-2:]]
        return {
            self.sections.history_table: history_table(session.history),
            self.sections.first_past: gr.Dropdown(choices, value=latest[0]),
            self.sections.second_past: gr.Dropdown(choices, value=latest[-1]),
        }

    def overlay(self, session: Session, first: int | None, second: int | None) -> Shown:
        """Two comparisons of the visitor's history in one plot."""
        pair = past_comparison(session.history, first), past_comparison(session.history, second)
        if pair[0] is None or pair[1] is None or pair[0] is pair[1]:
            return {self.sections.overlay_reading: reading_line(names.TWO_NEEDED)}
        overlaid = pair[0].overlaid, pair[1].overlaid
        return {
            self.sections.overlay: overlay_figure(*overlaid),
            self.sections.overlay_reading: reading_line(overlay_reading(*overlaid)),
        }

    def _calibrate(self, session: Session, asked: Asked, threshold: Any) -> Iterator[Shown]:
        layout, stop = self.layout, session.stop
        calibration = None
        session.open_section = names.CHOOSE_K
        yield {self.sections.tabs: gr.Tabs(selected=names.CHOOSE_K)}
        for event in self.engine.calibrate(CALIBRATION_SAMPLES, read_threshold(threshold), stop):
            if isinstance(event, CalibrationProgress):
                done = progress_line(f"Measured {event.measured} of {event.samples} samples at every K.")
                yield {layout.verdict: done, **self.drawing.show_calibration(session, event.so_far)}
            else:
                calibration = event
        session.plots.pop(names.CHOOSE_K, None)
        if calibration is None:
            if stop is session.stop:
                sentence = "Stopped. What was measured is kept; the next time goes on there."
                yield {
                    layout.verdict: progress_line(sentence),
                    **self.drawing.show_calibration(session, self.engine.calibration),
                }
            return
        chosen = calibration.nearest_layer
        yield {
            layout.layer: gr.Slider(value=chosen, info=layer_info(self.engine.vlm.layers, calibration)),
            **self.drawing.show_calibration(session, calibration),
        }
        yield from self._run(session, asked._replace(layer=chosen))

    def _compared(self, session: Session, asked: Asked, query: Query) -> Iterator[Shown]:
        """Make sure that the comparison that is shown is of this query and layer."""
        earlier, shown = session.earlier_full(query), session.examination
        if earlier is None or shown is None or shown.full is not earlier or shown.layer != query.layer:
            yield from self._run(session, asked)

    def _answer_at_layers(self, session: Session, asked: Asked, first_layer: Any, last_layer: Any) -> Iterator[Shown]:
        layout, stop, query = self.layout, session.stop, asked.query()
        layers = layer_range(first_layer, last_layer, self.engine.vlm.layers)
        yield from self._compared(session, asked, query)
        earlier = session.earlier_full(query)
        if earlier is None:
            return
        full, answers = earlier.run, []
        for answer in self.engine.answer_at_layers(query, layers, full, stop):
            answers.append(answer)
            done = progress_line(f"Answered at K = {answer.layer}, {len(answers)} of {len(layers)}.")
            table = answers_table(full, answers, is_complete=False)
            yield {layout.verdict: done, self.sections.answers_table: table}
        if len(answers) < len(layers):
            if stop is session.stop:
                yield {layout.verdict: progress_line(f"Stopped after {len(answers)} of {len(layers)} answers.")}
            return
        plot = answers_plot(full, answers)
        session.plots[names.EVERY_K] = plot
        yield {
            layout.verdict: verdict_line(plot.reading),
            self.sections.answers_table: answers_table(full, answers, is_complete=True),
            **self.drawing.show(plot),
        }

    def _time_again(self, session: Session, asked: Asked, rounds: Any) -> Iterator[Shown]:
        layout, stop, query = self.layout, session.stop, asked.query()
        rounds = whole_number("number of rounds", rounds)
        yield from self._compared(session, asked, query)
        examination = session.examination
        if examination is None:
            return
        session.open_section = names.TIMING
        made = 0
        for timing in self.engine.repeat_timing(examination, rounds, stop):
            made = timing.rounds
            # What it shows is measured already: it must not wait for this turn's own end.
            plot = session.plots[names.TIMING] = timing_plot(examination)
            done = progress_line(f"Measured {made} of {rounds} rounds of both runs.")
            yield {layout.verdict: done, **self.drawing.show(plot)}
        if made < rounds and stop is session.stop:
            yield {layout.verdict: progress_line(f"Stopped after {made} of {rounds} rounds.")}
        elif made == rounds:
            yield {layout.verdict: verdict_line(verdict(examination.comparison))}

    def _choose_attention(self, session: Session, chosen: str) -> Iterator[Shown]:
        session.attention_query = read_choice(chosen)
        yield from self.drawing.redraw(session)

    def _choose_map(self, session: Session, chosen: str) -> Iterator[Shown]:
        query = read_choice(chosen)
        session.map_token = query if isinstance(query, int) else None
        yield from self.drawing.redraw(session)

    def _card(self, run: str) -> gr.HTML:
        return self.layout.full if run == "full" else self.layout.withdrawn

    def choose_example(self, index: int) -> tuple[str, dict[str, str], str, gr.Dataset]:
        example = self.examples[index]
        origin = {"example": example.picture.stem}
        return str(example.picture), origin, example.question, _suggestions(example.suggestions)

    def choose_question(self, sample: Sequence[str] | tuple[int, Sequence[str]]) -> str:
        return sample[1][0]

    def random_scene(self) -> tuple[Any, dict[str, str], str, gr.Dataset]:
        """A new picture of coloured shapes, with a question and others that fit it."""
        seed = self.generator.randrange(10**9)
        picture, questions = random_example(seed)
        return picture, {"scene": str(seed)}, questions[0], _suggestions(questions)

    def own_picture(self) -> tuple[gr.Dataset, dict[str, str]]:
        """The visitor's own picture: of what it shows nothing is known, and no link restores it."""
        return _suggestions(GENERAL_QUESTIONS), {}

    def compare(self, image: gr.FileData, question: str, layer: int, max_new_tokens: int) -> dict[str, Any]:
        """Answer a question about a picture twice, with every layer seeing it and with its tokens withdrawn at a layer.

        Args:
            image: The picture, as a data URI (data:image/png;base64,...) where it is no uploaded file.
            question: What to ask about it.
            layer: Withdrawal layer K, from 1 to the model's number of decoder layers, which withdraws nothing.
            max_new_tokens: The longest answer, in tokens.

        Returns:
            Both answers with their tokens, times in milliseconds, prefill FLOPs and bytes of KV cache.
        """

        def compared() -> dict[str, Any]:
            return self.engine.compare_to_end(Query.read(image, question, layer, max_new_tokens)).to_json()

        return self._for_programs(compared)

    def examine(self, image: gr.FileData, question: str, layer: int, max_new_tokens: int) -> dict[str, Any]:
        """Answer a question about a picture twice and measure all that the page shows of it, the plots' numbers.

        Args:
            image: The picture, as a data URI (data:image/png;base64,...) where it is no uploaded file.
            question: What to ask about it.
            layer: Withdrawal layer K, from 1 to the model's number of decoder layers, which withdraws nothing.
            max_new_tokens: The longest answer, in tokens.

        Returns:
            The comparison, attention mass and maps, migration, cost and time by layer, divergence at every K,
            probabilities of the answers' tokens, and the machine.
        """

        def examined() -> dict[str, Any]:
            query = Query.read(image, question, layer, max_new_tokens)
            comparison = self.engine.compare_to_end(query)
            full = FullExamination(self.engine.vlm, query.picture, query.question, comparison.full)
            examination = Examination(full, comparison)
            return self.engine.measure(lambda: report_data(examination, self.engine.calibration, this_machine()))

        return self._for_programs(examined)

    def _for_programs(self, answer: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What goes wrong is told in one sentence to programs, too."""
        try:
            return answer()
        except (ValueError, TypeError) as error:
            raise gr.Error(str(error), print_exception=False) from error
        except Exception as error:
            logger.exception("a comparison for the API failed")
            raise gr.Error("The run failed, and the server's log says why.", print_exception=False) from error


def _header(comparison: Comparison) -> str:
    return header(
        comparison.model, comparison.precision, comparison.device, comparison.layers, comparison.visual_tokens
    )


def _suggestions(questions: Sequence[str]) -> gr.Dataset:
    return gr.Dataset(samples=[[question] for question in questions])
