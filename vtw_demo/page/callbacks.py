"""What the page does: callbacks between the layout's components and the engine."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from vtw_demo.comparison.analysis import ALL_PARTS, RUNS, Analysis, Part
from vtw_demo.comparison.calibration import CalibrationProgress
from vtw_demo.comparison.compare import Comparison, RunFinished, RunProgress
from vtw_demo.comparison.machine import this_machine
from vtw_demo.comparison.summary import verdict
from vtw_demo.errors import UserError
from vtw_demo.models.registry import starting_layer
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.page import sections as names
from vtw_demo.page.answers_table import answers_table
from vtw_demo.page.drawing import Drawing
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
from vtw_demo.page.model_tab import model_facts
from vtw_demo.page.sentences import Shown, in_sentences
from vtw_demo.page.session import Session
from vtw_demo.page.token_strip import read_choice
from vtw_demo.plots import timing as timing_plots
from vtw_demo.plots.answer_cards import AnswerCard
from vtw_demo.plots.every_layer import answers_plot
from vtw_demo.plots.overlay import overlay_figure, overlay_reading
from vtw_demo.plots.report import report_data
from vtw_demo.plots.tab import SURFACES
from vtw_demo.server.access import LostConnection, caller
from vtw_demo.server.engine import STOPPED, SWITCHED, Engine
from vtw_demo.server.query import Query, layer_range, read_threshold, whole_number
from vtw_demo.server.queue import Place, StoppedError
from vtw_demo.server.switching import STILL_THERE, Switching


class Asked(NamedTuple):
    """What a visitor asks for, as the browser sends it: nothing of it is checked yet."""

    picture: Any
    clip: Any
    question: Any
    layer: Any
    max_new_tokens: Any

    def query(self, vlm: VisionLanguageModel) -> Query:
        """For this model; a clip goes before the picture. Raises ValueError, in a sentence for people."""
        shown = self.clip if self.clip and vlm.sampling else self.picture
        return Query.read(shown, self.question, self.layer, self.max_new_tokens, vlm.sampling)


class Callbacks:
    """`first_layer` is the K asked for at the start; `switching` is None where the model stays the same."""

    def __init__(
        self,
        layout: Layout,
        engine: Engine,
        examples: Sequence[Example],
        first_layer: int | None,
        switching: Switching | None,
    ) -> None:
        self.layout = layout
        self.sections = layout.sections
        self.engine = engine
        self.examples = examples
        self.first_vlm = engine.vlm
        self.first_layer = first_layer
        self.switching = switching
        self.generator = random.Random()
        self.drawing = Drawing(layout, engine)
        self._in_sentences = partial(in_sentences, layout, engine.monitoring)

    def start(self, session: Session, request: gr.Request) -> Shown:
        """What a new visitor sees: what their link says, and the model and K as somebody may have left them."""
        layout, vlm = self.layout, self.engine.vlm
        restored = restore(
            dict(request.query_params), self.examples, vlm.name, vlm.layers, longest_question=LONGEST_QUESTION
        )
        shown = self._show_model(session, restored.layer)
        if restored.picture is not None:
            shown |= {layout.picture: restored.picture, layout.origin: restored.origin}
            shown |= {layout.suggestions: _suggestions(restored.suggestions)}
        if restored.question is not None:
            shown[layout.question] = restored.question
        if restored.problems:
            shown[layout.note] = gr.HTML(problem_line(" ".join(restored.problems)), visible=True)
        return shown

    def _show_model(self, session: Session, layer: int | None = None) -> Shown:
        """The page, about the model that is loaded; K is `layer`, or where that one starts."""
        layout, vlm, calibration = self.layout, self.engine.vlm, self.engine.calibration
        session.show_model(vlm)
        info = layer_info(vlm.layers, starting_layer(vlm), calibration)
        return {
            layout.header: header(vlm.name, vlm.precision, str(vlm.device), vlm.layers, None),
            layout.model: {"model": vlm.name},
            layout.clip: gr.Video(visible=vlm.sampling is not None),
            layout.layer: gr.Slider(maximum=vlm.layers, value=layer or self._first_layer(), info=info),
            layout.swept: None,
            self.sections.last_layer: vlm.layers - 1,
        }

    def _first_layer(self) -> int:
        """Where K starts with the model that is loaded."""
        vlm = self.engine.vlm
        asked = self.first_layer if vlm is self.first_vlm else None
        return asked or default_layer(starting_layer(vlm), self.engine.calibration)

    def look(self, session: Session) -> Shown:
        """From time to time: whether another visitor has switched the model."""
        before, vlm = session.vlm, self.engine.vlm
        if before is None or before is vlm:
            return {self.layout.note: gr.skip()}
        if (before.name, before.precision) == (vlm.name, vlm.precision):  # a switch failed: it was loaded again
            session.show_model(vlm)
            return {self.layout.note: gr.skip()}
        session.is_told_of_switch = True
        return {**self._show_model(session), self.layout.note: gr.HTML(problem_line(_switched(vlm)), visible=True)}

    def model_facts(self, name: Any) -> str:
        return model_facts(name if isinstance(name, str) else None)

    def switch(self, session: Session, *asked: Any) -> Iterator[Shown]:
        """Another model, for all visitors; then the query with it."""
        *query, name, quantization = asked
        yield from self._in_sentences(self._switch(session, Asked(*query), name, quantization))

    def begin(self, session: Session) -> str:
        session.begin()
        return progress_line("Waiting for the model.")

    def stop(self, session: Session) -> None:
        session.halt()

    def run(self, session: Session, *asked: Any) -> Iterator[Shown]:
        """Both runs, then what was measured."""
        session.forget()
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

    def time_again(self, session: Session, *asked: Any) -> Iterator[Shown]:
        """Both runs again and again, interleaved, after a comparison where there is none of this query."""
        *query, rounds = asked
        yield from self._in_sentences(self._time_again(session, Asked(*query), rounds))

    def open(self, session: Session, name: str) -> Any:
        """The tab `name` is in view."""
        return self.drawing.open(session, name)

    def draw(self, session: Session) -> Iterator[Shown]:
        """The section in view, unless it is drawn already."""
        yield from self._in_sentences(self.drawing.draw(session))

    def choose_attention(self, session: Session, chosen: gr.EventData) -> Iterator[Shown]:
        yield from self._in_sentences(self._choose_attention(session, chosen.query))

    def choose_map(self, session: Session, chosen: gr.EventData) -> Iterator[Shown]:
        yield from self._in_sentences(self._choose_map(session, chosen.query))

    def choose_surface(self, session: Session, surface: str) -> Iterator[Shown]:
        if surface in SURFACES:
            session.surface = surface
            yield from self._in_sentences(self.drawing.redraw(session))

    def _switch(self, session: Session, asked: Asked, name: Any, quantization: Any) -> Iterator[Shown]:
        layout, switching, stop = self.layout, self.switching, session.stop
        if switching is None:
            raise UserError("The model can't be switched on this page.")
        try:
            for event in switching.switch(session.visitor, str(name or "").strip(), str(quantization or ""), stop):
                yield {layout.verdict: progress_line(str(event))}
        except (UserError, StoppedError) as error:
            if session.vlm is not self.engine.vlm:
                yield self._show_model(session)
            if isinstance(error, UserError):
                raise
            if stop is session.stop:
                yield {layout.verdict: progress_line(f"Stopped. {STILL_THERE}")}
            return
        yield {**self._show_model(session), layout.note: gr.HTML(visible=False)}
        yield from self._run(session, asked._replace(layer=self._first_layer()))

    def _vlm(self, session: Session) -> VisionLanguageModel:
        """The model that the visitor's page is about. Raises ValueError where it has made way for another."""
        vlm = self.engine.vlm
        if session.vlm is None:
            session.show_model(vlm)
        elif session.vlm is not vlm:
            raise UserError(SWITCHED)
        return vlm

    def _run(self, session: Session, asked: Asked) -> Iterator[Shown]:
        layout, stop, vlm = self.layout, session.stop, self._vlm(session)
        query = asked.query(vlm)
        earlier = session.earlier(query)
        prompt = earlier.prompt if earlier else query.prompt(vlm)
        full, comparison = earlier.comparison.full if earlier else None, None
        session.hide()
        for event in self.engine.compare(session.visitor, vlm, query, prompt, full, stop):
            if isinstance(event, Place):
                yield {
                    layout.verdict: progress_line(str(event)),
                    **({} if event.ahead else self._running(query, bool(earlier))),
                }
            elif isinstance(event, RunProgress):
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
        analysis = earlier.at(comparison) if earlier else Analysis(vlm, prompt, comparison)
        session.show(query, analysis)
        said = " ".join(sentence for sentence in (verdict(comparison), query.note) if sentence)
        yield {layout.verdict: verdict_line(said), layout.header: _header(comparison)}
        if session.is_told_of_switch:
            session.is_told_of_switch = False
            yield {layout.note: gr.HTML(visible=False)}
        yield from self.drawing.draw(session, stop)
        yield from self._followed(session, analysis, Part("sweep"), stop)
        if not earlier:
            yield {layout.swept: {**analysis.of("sweep").to_json(), "question": query.question.strip()}}
        yield from self._remember(session, analysis, stop)

    def _running(self, query: Query, has_full: bool) -> Shown:
        """The cards of the runs that begin."""
        full = {} if has_full else {self.layout.full: AnswerCard("full", query.layer, is_running=True).to_html()}
        withdrawn = AnswerCard("withdrawn", query.layer, is_running=has_full)
        return {**full, self.layout.withdrawn: withdrawn.to_html()}

    def _followed(self, session: Session, analysis: Analysis, part: Part, stop: threading.Event) -> Iterator[Shown]:
        """What is measured after a comparison, whose verdict stands on the page meanwhile."""
        for _ in self.engine.measure(session.visitor, analysis, part, stop, follows=True):
            yield {self.layout.verdict: gr.skip()}

    def _remember(self, session: Session, analysis: Analysis, stop: threading.Event) -> Iterator[Shown]:
        """The comparison, in the visitor's history."""
        for run in RUNS:
            yield from self._followed(session, analysis, Part("attention", run), stop)
        full, withdrawn = (analysis.of("attention", run) for run in RUNS)
        session.remember(analysis.comparison, full, withdrawn, analysis.of("sweep").kl)
        choices = history_choices(session.history)
        latest = [value for _, value in choices[-2:]]
        yield {
            self.sections.history_table: history_table(session.history),
            self.sections.first_past: gr.Dropdown(choices, value=latest[0]),
            self.sections.second_past: gr.Dropdown(choices, value=latest[-1]),
        }

    def overlay(self, session: Session, first: int | None, second: int | None) -> Shown:
        """Two comparisons of the visitor's history in one plot."""
        return next(self._in_sentences(self._overlay(session, first, second)))

    def _overlay(self, session: Session, first: int | None, second: int | None) -> Iterator[Shown]:
        pair = past_comparison(session.history, first), past_comparison(session.history, second)
        if pair[0] is None or pair[1] is None or pair[0] is pair[1]:
            yield {self.sections.overlay_reading: reading_line(names.TWO_NEEDED)}
            return
        overlaid = pair[0].overlaid, pair[1].overlaid
        yield {
            self.sections.overlay: overlay_figure(*overlaid),
            self.sections.overlay_reading: reading_line(overlay_reading(*overlaid)),
        }

    def _calibrate(self, session: Session, asked: Asked, threshold: Any) -> Iterator[Shown]:
        layout, stop = self.layout, session.stop
        calibration, vlm = None, self._vlm(session)
        session.open_section = names.CHOOSE_K
        yield {self.sections.tabs: gr.Tabs(selected=names.CHOOSE_K)}
        for event in self.engine.calibrate(session.visitor, CALIBRATION_SAMPLES, read_threshold(threshold), stop):
            if isinstance(event, Place):
                yield {layout.verdict: progress_line(str(event))}
            elif isinstance(event, CalibrationProgress):
                done = progress_line(f"Measured {event.measured} of {event.samples} samples at every K.")
                yield {layout.verdict: done, **self.drawing.show_calibration(session, event.so_far)}
            else:
                calibration = event
        session.plots.pop(names.CHOOSE_K, None)
        problem = self.engine.store.problem
        if problem is not None:
            gr.Warning(f"{problem}. It is forgotten when the server ends.")
        if calibration is None:
            if stop is session.stop:
                sentence = "Stopped." if problem else "Stopped. What was measured is kept; the next time goes on there."
                yield {
                    layout.verdict: progress_line(sentence),
                    **self.drawing.show_calibration(session, self.engine.calibration),
                }
            return
        chosen = calibration.nearest_layer
        yield {
            layout.layer: gr.Slider(value=chosen, info=layer_info(vlm.layers, starting_layer(vlm), calibration)),
            **self.drawing.show_calibration(session, calibration),
        }
        yield from self._run(session, asked._replace(layer=chosen))

    def _compared(self, session: Session, asked: Asked, query: Query) -> Iterator[Shown]:
        """Make sure that the comparison that is shown is of this query and layer."""
        earlier, shown = session.earlier(query), session.analysis
        if earlier is None or shown is None or shown.prompt is not earlier.prompt or shown.layer != query.layer:
            yield from self._run(session, asked)

    def _answer_at_layers(self, session: Session, asked: Asked, first_layer: Any, last_layer: Any) -> Iterator[Shown]:
        layout, stop, vlm = self.layout, session.stop, self._vlm(session)
        query, layers = asked.query(vlm), layer_range(first_layer, last_layer, vlm.layers)
        yield from self._compared(session, asked, query)
        earlier = session.earlier(query)
        if earlier is None:
            return
        full, answers = earlier.comparison.full, []
        for answer in self.engine.answer_at_layers(
            session.visitor, vlm, earlier.prompt, layers, full, query.max_new_tokens, stop
        ):
            if isinstance(answer, Place):
                yield {layout.verdict: progress_line(str(answer))}
                continue
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
        layout, stop, query = self.layout, session.stop, asked.query(self._vlm(session))
        rounds = whole_number("number of rounds", rounds)
        yield from self._compared(session, asked, query)
        analysis = session.analysis
        if analysis is None:
            return
        session.open_section = names.TIMING
        made = 0
        for timing in self.engine.repeat_timing(session.visitor, analysis, rounds, stop):
            if isinstance(timing, Place):
                yield {layout.verdict: progress_line(str(timing))}
                continue
            made = timing.rounds
            # What it shows is measured already: it must not wait for this turn's own end.
            plot = timing_plots.TAB.plot(analysis, session.view(self.engine.calibration))
            session.plots[names.TIMING] = plot
            done = progress_line(f"Measured {made} of {rounds} rounds of both runs.")
            yield {layout.verdict: done, **self.drawing.show(plot)}
        if made < rounds and stop is session.stop:
            yield {layout.verdict: progress_line(f"Stopped after {made} of {rounds} rounds.")}
        elif made == rounds:
            yield {layout.verdict: verdict_line(verdict(analysis.comparison))}

    def _choose_attention(self, session: Session, chosen: str) -> Iterator[Shown]:
        session.attention_query = read_choice(chosen)
        yield from self.drawing.redraw(session)

    def _choose_map(self, session: Session, chosen: str) -> Iterator[Shown]:
        query = read_choice(chosen)
        session.map_token = query if isinstance(query, int) else None
        yield from self.drawing.redraw(session)

    def _card(self, run: str) -> gr.HTML:
        return self.layout.full if run == "full" else self.layout.withdrawn

    def choose_example(self, index: int) -> tuple[str, None, dict[str, str], str, gr.Dataset]:
        example = self.examples[index]
        origin = {"example": example.picture.stem}
        return str(example.picture), None, origin, example.question, _suggestions(example.suggestions)

    def choose_question(self, sample: Sequence[str] | tuple[int, Sequence[str]]) -> str:
        return sample[1][0]

    def random_scene(self) -> tuple[Any, None, dict[str, str], str, gr.Dataset]:
        """A new picture of coloured shapes, with a question and others that fit it."""
        seed = self.generator.randrange(10**9)
        picture, questions = random_example(seed)
        return picture, None, {"scene": str(seed)}, questions[0], _suggestions(questions)

    def own_picture(self, picture: Any, clip: Any) -> tuple[gr.Dataset, dict[str, str]]:
        """The visitor's own picture or clip: of what it shows nothing is known, and no link restores it.

        The page is told of it here so that it is the session's from its upload on.
        """
        return _suggestions(GENERAL_QUESTIONS), {}

    def compare(self, image: gr.FileData, question: str, layer: int, max_new_tokens: int) -> dict[str, Any]:
        """Answer a question about a picture twice, with every layer seeing it and with its tokens withdrawn at a layer.

        Args:
            image: The picture, or a clip if the model takes clips: a data URI (data:image/png;base64,...) or a file.
            question: What to ask about it.
            layer: Withdrawal layer K, from 1 to the model's number of decoder layers, which withdraws nothing.
            max_new_tokens: The longest answer, in tokens.

        Returns:
            Both answers with their tokens, times in milliseconds, prefill FLOPs and bytes of KV cache; `note` says what
            of the picture was left out, such as an animation's further frames.
        """

        def compared() -> dict[str, Any]:
            vlm = self.engine.vlm
            query = Query.read(image, question, layer, max_new_tokens, vlm.sampling)
            asking = caller()
            analysis = self.engine.compare_to_end(asking.session, vlm, query, LostConnection(asking))
            return {**analysis.comparison.to_json(), "note": query.note}

        return self._for_programs(compared)

    def examine(self, image: gr.FileData, question: str, layer: int, max_new_tokens: int) -> dict[str, Any]:
        """Answer a question about a picture twice and measure all that the page shows of it, the plots' numbers.

        Args:
            image: The picture, or a clip if the model takes clips: a data URI (data:image/png;base64,...) or a file.
            question: What to ask about it.
            layer: Withdrawal layer K, from 1 to the model's number of decoder layers, which withdraws nothing.
            max_new_tokens: The longest answer, in tokens.

        Returns:
            The comparison, attention mass and maps, migration, cost and time by layer, divergence at every K,
            probabilities of the answers' tokens, and the machine.
        """

        def examined() -> dict[str, Any]:
            vlm, calibration = self.engine.vlm, self.engine.calibration
            query = Query.read(image, question, layer, max_new_tokens, vlm.sampling)
            asking = caller()
            stop = LostConnection(asking)
            analysis = self.engine.compare_to_end(asking.session, vlm, query, stop)
            for part in ALL_PARTS:
                with suppress(UserError):  # a part that this model's can't be known of: the data say so themselves
                    for _ in self.engine.measure(asking.session, analysis, part, stop, follows=True):
                        pass
            return {**report_data(analysis, calibration, this_machine()), "note": query.note}

        return self._for_programs(examined)

    def _for_programs(self, answer: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What goes wrong is told in one sentence to programs, too."""
        try:
            return answer()
        except StoppedError:
            sentence = STOPPED
        except Exception as error:
            sentence = self.engine.monitoring.fault_of(error).sentence
        raise gr.Error(sentence, print_exception=False)  # here nothing hangs on what was raised any more


def _header(comparison: Comparison) -> str:
    return header(
        comparison.model, comparison.precision, comparison.device, comparison.layers, comparison.visual_tokens
    )


def _switched(vlm: VisionLanguageModel) -> str:
    return (
        f"Another visitor has switched the model: this page now asks {vlm.name} ({vlm.precision}, {vlm.layers} "
        "layers). What is shown is of the model before."
    )


def _suggestions(questions: Sequence[str]) -> gr.Dataset:
    return gr.Dataset(samples=[[question] for question in questions])
