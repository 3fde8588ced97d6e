"""What the page does: callbacks between the layout's components and the engine."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import gradio as gr

from vtw_demo.calibration import DEFAULT_THRESHOLD, Calibration, CalibrationProgress
from vtw_demo.compare import Comparison, RunFinished, RunProgress
from vtw_demo.figures.answers_by_layer import layer_times_figure
from vtw_demo.figures.attention import AttentionQuery, attention_figure, attention_reading
from vtw_demo.figures.divergence import divergence_figure, divergence_reading, words_figure, words_reading
from vtw_demo.figures.timing import timing_figure, timing_reading
from vtw_demo.page.answers import Answer, header, problem_line, progress_line, reading_line, verdict_line
from vtw_demo.page.answers_table import answers_table, stable_sentence
from vtw_demo.page.engine import Engine
from vtw_demo.page.examples import GENERAL_QUESTIONS, Example, random_example
from vtw_demo.page.layout import CALIBRATION_SAMPLES, CHOOSE_K, Layout, default_layer, layer_info
from vtw_demo.page.query import Query, layer_range, read_threshold
from vtw_demo.page.session import FullRun, Session
from vtw_demo.page.verdict import verdict
from vtw_demo.query_sweep import QuerySweep

logger = logging.getLogger(__name__)

Shown = dict[Any, Any]
"""New values of components."""


class Asked(NamedTuple):
    """What a visitor asks for, as the browser sends it: nothing of it is checked yet."""

    picture: Any
    question: Any
    layer: Any
    max_new_tokens: Any
    attention_query: AttentionQuery

    def query(self) -> Query:
        """Raises ValueError, in a sentence for people."""
        return Query.read(self.picture, self.question, self.layer, self.max_new_tokens)


class Callbacks:
    def __init__(self, layout: Layout, engine: Engine, examples: Sequence[Example], first_layer: int | None) -> None:
        self.layout = layout
        self.engine = engine
        self.examples = examples
        self.first_layer = first_layer
        self.generator = random.Random()

    def begin(self, session: Session) -> str:
        session.begin()
        return progress_line("Waiting for the model.")

    def stop(self, session: Session) -> None:
        session.stop.set()

    def run(self, session: Session, *asked: Any) -> Iterator[Shown]:
        """Both runs, then what was measured."""
        session.full = None
        yield from self.run_withdrawn(session, *asked)

    def run_withdrawn(self, session: Session, *asked: Any) -> Iterator[Shown]:
        """The withdrawn run beside the visitor's earlier full run; both where picture, question or cap are others."""
        yield from self._in_sentences(self._run(session, Asked(*asked)))

    def calibrate(self, session: Session, *asked: Any) -> Iterator[Shown]:
        """Measure the divergence on a few samples, set the slider by it, and rerun the withdrawn side."""
        *query, threshold = asked
        yield from self._in_sentences(self._calibrate(session, Asked(*query), threshold))

    def answer_at_layers(self, session: Session, *asked: Any) -> Iterator[Shown]:
        """The query answered at every K of the range, after a comparison where there is no full run of it yet."""
        *query, first_layer, last_layer = asked
        yield from self._in_sentences(self._answer_at_layers(session, Asked(*query), first_layer, last_layer))

    def _in_sentences(self, steps: Iterator[Shown]) -> Iterator[Shown]:
        """`steps`, and in place of an exception one sentence on the page."""
        try:
            yield from steps
        except (ValueError, TypeError) as error:
            yield self._problem(str(error))
        except Exception:
            logger.exception("a run failed")
            yield self._problem("The run failed, and the server's log says why; the model is ready for the next one.")

    def _run(self, session: Session, asked: Asked) -> Iterator[Shown]:
        layout, stop, query = self.layout, session.stop, asked.query()
        earlier = session.earlier_full(query)
        comparison = None
        yield {
            layout.verdict: progress_line("Running."),
            **({} if earlier else {layout.full: Answer("full", query.layer, is_running=True).to_html()}),
            layout.withdrawn: Answer("withdrawn", query.layer, is_running=bool(earlier)).to_html(),
        }
        for event in self.engine.compare(query, full=earlier.run if earlier else None, stop=stop):
            if isinstance(event, RunProgress):
                answer = Answer(event.run, query.layer, event.text, event.new_tokens, is_running=True)
                yield {self._card(event.run): answer.to_html()}
            elif isinstance(event, RunFinished):
                yield {self._card(event.run): Answer(event.run, query.layer, result=event.result).to_html()}
            else:
                comparison = event
        if comparison is None:
            # A newer request of this visitor may have stopped this one, and says itself what goes on.
            if stop is session.stop:
                yield {layout.verdict: progress_line("Stopped before both answers were complete.")}
            return
        yield {
            layout.verdict: verdict_line(verdict(comparison)),
            layout.header: _header(comparison),
            layout.timing: timing_figure(comparison),
            layout.timing_reading: reading_line(timing_reading(comparison)),
        }
        full_attention = (
            earlier.attention if earlier else self.engine.measure_attention(query, comparison.full, layer=None)
        )
        session.attention = (
            full_attention,
            self.engine.measure_attention(query, comparison.withdrawn, layer=query.layer),
        )
        yield self.show_attention(session, asked.attention_query)
        swept = earlier.sweep if earlier else self.engine.sweep(query, comparison.full)
        session.full = FullRun(query.identity, comparison.full, full_attention, swept)
        if not earlier:
            yield self._show_sweep(query, swept)

    def _show_sweep(self, query: Query, swept: QuerySweep) -> Shown:
        layout, calibration = self.layout, self.engine.calibration
        threshold = DEFAULT_THRESHOLD if calibration is None else calibration.threshold
        return {
            layout.swept: {**swept.to_json(), "question": query.question.strip()},
            **self._show_calibration(calibration, swept),
            layout.words: words_figure(swept),
            layout.words_reading: reading_line(words_reading(swept, threshold)),
        }

    def _show_calibration(self, calibration: Calibration | None, swept: QuerySweep | None) -> Shown:
        return {
            self.layout.divergence: divergence_figure(calibration, swept),
            self.layout.divergence_reading: reading_line(divergence_reading(calibration, swept)),
        }

    def start(self) -> gr.Slider:
        """The slider for a new visitor: somebody may have calibrated the model since the page was built."""
        layers, calibration = self.engine.vlm.layers, self.engine.calibration
        first = self.first_layer or default_layer(layers, calibration)
        return gr.Slider(value=first, info=layer_info(layers, calibration))

    def _calibrate(self, session: Session, asked: Asked, threshold: Any) -> Iterator[Shown]:
        layout, stop = self.layout, session.stop
        swept = session.full.sweep if session.full else None
        calibration = None
        yield {layout.tabs: gr.Tabs(selected=CHOOSE_K)}
        for event in self.engine.calibrate(CALIBRATION_SAMPLES, read_threshold(threshold), stop):
            if isinstance(event, CalibrationProgress):
                done = progress_line(f"Measured {event.measured} of {event.samples} samples at every K.")
                yield {layout.verdict: done, **self._show_calibration(event.so_far, swept)}
            else:
                calibration = event
        if calibration is None:
            if stop is session.stop:
                sentence = "Stopped. What was measured is kept; the next time goes on there."
                yield {
                    layout.verdict: progress_line(sentence),
                    **self._show_calibration(self.engine.calibration, swept),
                }
            return
        chosen = calibration.nearest_layer
        yield {
            layout.layer: gr.Slider(value=chosen, info=layer_info(self.engine.vlm.layers, calibration)),
            **self._show_calibration(calibration, swept),
        }
        yield from self._run(session, asked._replace(layer=chosen))

    def _answer_at_layers(self, session: Session, asked: Asked, first_layer: Any, last_layer: Any) -> Iterator[Shown]:
        layout, stop, query = self.layout, session.stop, asked.query()
        layers = layer_range(first_layer, last_layer, self.engine.vlm.layers)
        if session.earlier_full(query) is None:
            yield from self._run(session, asked)
        earlier = session.earlier_full(query)
        if earlier is None:
            return
        full, answers = earlier.run, []
        for answer in self.engine.answer_at_layers(query, layers, full, stop):
            answers.append(answer)
            done = progress_line(f"Answered at K = {answer.layer}, {len(answers)} of {len(layers)}.")
            yield {layout.verdict: done, layout.answers_table: answers_table(full, answers, is_complete=False)}
        if len(answers) < len(layers):
            if stop is session.stop:
                yield {layout.verdict: progress_line(f"Stopped after {len(answers)} of {len(layers)} answers.")}
            return
        yield {
            layout.verdict: verdict_line(stable_sentence(full, answers)),
            layout.answers_table: answers_table(full, answers, is_complete=True),
            layout.layer_times: layer_times_figure(full, answers),
        }

    def _card(self, run: str) -> gr.HTML:
        return self.layout.full if run == "full" else self.layout.withdrawn

    def _problem(self, sentence: str) -> Shown:
        return {self.layout.verdict: problem_line(sentence)}

    def show_attention(self, session: Session, attention_query: AttentionQuery) -> Shown:
        if session.attention is None:
            return {}
        full, withdrawn = session.attention
        return {
            self.layout.attention: attention_figure(full, withdrawn, attention_query),
            self.layout.attention_reading: reading_line(attention_reading(full, withdrawn, attention_query)),
        }

    def choose_example(self, index: int) -> tuple[str, str, gr.Dataset]:
        example = self.examples[index]
        return str(example.picture), example.question, _suggestions(example.suggestions)

    def choose_question(self, sample: Sequence[str] | tuple[int, Sequence[str]]) -> str:
        return sample[1][0]

    def random_scene(self) -> tuple[Any, str, gr.Dataset]:
        picture, questions = random_example(self.generator)
        return picture, questions[0], _suggestions(questions)

    def general_questions(self) -> gr.Dataset:
        return _suggestions(GENERAL_QUESTIONS)

    def compare(self, image: gr.FileData, question: str, layer: int, max_new_tokens: int) -> dict[str, Any]:
        """Answer a question about a picture twice, with every layer seeing it and with its tokens withdrawn."""
        try:
            return self.engine.compare_to_end(Query.read(image, question, layer, max_new_tokens)).to_json()
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
