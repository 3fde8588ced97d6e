"""What the parts of the page share: how an event of theirs reaches the model, and what a query sets going."""

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr

from vtw_demo.comparison.analysis import RUNS, Analysis, Part
from vtw_demo.comparison.compare import RunFinished, RunProgress
from vtw_demo.comparison.summary import verdict
from vtw_demo.errors import UserError
from vtw_demo.models.registry import starting_layer
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.page.examples import Example
from vtw_demo.page.html import header, problem_line, progress_line, verdict_line
from vtw_demo.page.layout import Layout, default_layer, layer_info
from vtw_demo.page.session import Session
from vtw_demo.plots.answer_cards import AnswerCard
from vtw_demo.server.engine import SWITCHED, Engine
from vtw_demo.server.query import Query
from vtw_demo.server.queue import Place, StoppedError

if TYPE_CHECKING:
    from vtw_demo.page.tabs.tab import PageTab

Shown = dict[Any, Any]
"""New values of components."""
Steps = Callable[..., Iterator[Shown]]


class Asked(NamedTuple):
    """What a visitor asks for, as the browser sends it: nothing of it is checked yet."""

    picture: Any
    clip: Any
    question: Any
    layer: Any
    max_new_tokens: Any

    def query(self, vlm: VisionLanguageModel) -> Query:
        """For this model; a clip goes before the picture."""
        shown = self.clip if self.clip and vlm.sampling else self.picture
        return Query.read(shown, self.question, self.layer, self.max_new_tokens, vlm.sampling)


class Page:
    """`first_layer` is the K asked for at the start. `tabs`, and `tab_bar` that holds them, are laid out before any
    event is bound."""

    def __init__(self, engine: Engine, examples: Sequence[Example], first_layer: int | None) -> None:
        self.engine = engine
        self.first_vlm = engine.vlm
        self.first_layer = first_layer
        self.layout = Layout(examples, engine.vlm, self.starting_layer(), engine.calibration)
        self.tabs: list[PageTab] = []
        self.tab_bar: gr.Tabs

    @property
    def shown(self) -> list[Any]:
        """Whatever a step of a run may show, beside the verdict."""
        layout = self.layout
        of_tabs = [component for tab in self.tabs for component in tab.shown]
        others = [*layout.cards.values(), self.tab_bar]
        return [*self.about_model(), layout.note, *others, *of_tabs]

    def on_model(
        self, event: Any, steps: Steps, inputs: Sequence[Any] = (), outputs: Sequence[Any] = (), **options: Any
    ) -> None:
        """At `event`, `steps` of a session and the values of `inputs`. Whatever uses the model takes turns in the
        engine's queue, not in Gradio's. The verdict is among the `outputs`; each costs Gradio time in every step."""
        event(
            self._in_sentences(steps),
            [self.layout.session, *inputs],
            [self.layout.verdict, *outputs],
            concurrency_limit=None,
            show_progress="hidden",
            api_visibility="private",
            trigger_mode="multiple",
            **options,
        )

    def at_once(self, event: Any, function: Callable[..., Any], inputs: Any, outputs: Any, **options: Any) -> Any:
        """At `event`, what needs no model, and waits for nobody."""
        if inspect.isgeneratorfunction(function):
            function = self._in_sentences(function)
        settings: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private", **options}
        return event(function, inputs, outputs, **settings)

    def in_browser(self, event: Any, script: str, inputs: Any = None, outputs: Any = None) -> None:
        """At `event`, a script, without the server."""
        event(fn=None, inputs=inputs, outputs=outputs, js=script, api_visibility="private")

    def run_after(self, event: Any, steps: Steps, *more: Any) -> None:
        """After `event`, which ends what the visitor had running, `steps` of a session, what is asked, and the values
        of `more` inputs."""

        def begin(session: Session) -> str:
            session.begin()
            return progress_line("Waiting for the model.")

        def run(session: Session, *values: Any) -> Iterator[Shown]:
            fields = len(Asked._fields)
            yield from steps(session, Asked(*values[:fields]), *values[fields:])

        # A program that calls them as the page does finds them by these names.
        begin.__name__, run.__name__ = f"begin_{steps.__name__}", steps.__name__
        layout = self.layout
        begun = self.at_once(event, begin, [layout.session], [layout.verdict], trigger_mode="multiple")
        # Raw values: Gradio's own readers answer a broken picture with a stack trace.
        self.on_model(begun.then, run, [*layout.query, *more], self.shown, preprocess=False)

    def _in_sentences(self, steps: Steps) -> Steps:
        """`steps`, and in place of an exception one sentence on the page."""

        @wraps(steps)
        def said(*values: Any) -> Iterator[Shown]:
            # Gradio empties every output of what ends without a step, as a run does that a newer one has ended.
            shown = {self.layout.verdict: gr.skip()}
            try:
                yield from steps(*values)
            except StoppedError:  # by the visitor's next request, which says itself what goes on, or by their own click
                pass
            except Exception as error:
                shown = {self.layout.verdict: problem_line(self.engine.monitoring.fault_of(error).sentence)}
            yield shown  # here nothing hangs on the error any more

        return said

    def about_model(self, layer: int | None = None) -> Shown:
        """The page, about the model that is loaded; K is `layer`, or where that one starts."""
        layout, vlm = self.layout, self.engine.vlm
        info = layer_info(vlm.layers, starting_layer(vlm), self.engine.calibration)
        shown: Shown = {
            layout.header: header(vlm),
            layout.model: {"model": vlm.name},
            layout.clip: gr.update(visible=vlm.sampling is not None),
            layout.layer: gr.update(maximum=vlm.layers, value=layer or self.starting_layer(), info=info),
            layout.live: None,
        }
        for tab in self.tabs:
            shown |= tab.about_model(vlm)
        return shown

    def starting_layer(self) -> int:
        """Where K starts with the model that is loaded."""
        vlm = self.engine.vlm
        asked = self.first_layer if vlm is self.first_vlm else None
        return asked or default_layer(starting_layer(vlm), self.engine.calibration)

    def vlm(self, session: Session) -> VisionLanguageModel:
        """The model that the visitor's page is about. Raises UserError where it has made way for another."""
        vlm = self.engine.vlm
        if session.vlm is None:
            session.show_model(vlm)
        elif session.vlm is not vlm:
            raise UserError(SWITCHED)
        return vlm

    def run(self, session: Session, asked: Asked) -> Iterator[Shown]:
        """Both runs, then what was measured."""
        session.forget()
        yield from self.run_withdrawn(session, asked)

    def run_withdrawn(self, session: Session, asked: Asked) -> Iterator[Shown]:
        """The withdrawn run beside the visitor's earlier full run; both where picture, question or cap are others."""
        layout, stop, vlm = self.layout, session.stop, self.vlm(session)
        query = asked.query(vlm)
        earlier = session.earlier(query)
        prompt = earlier.prompt if earlier else query.prompt(vlm)
        full, comparison = earlier.comparison.full if earlier else None, None
        session.hide()
        for event in self.engine.compare(session.visitor, vlm, query, prompt, full, stop):
            if isinstance(event, Place):
                begun = {} if event.ahead else self._begun(query, has_full=bool(earlier))
                yield {layout.verdict: progress_line(str(event)), **begun}
            elif isinstance(event, RunProgress):
                answer = AnswerCard(event.run, query.layer, event.text, event.new_tokens, is_running=True)
                yield {layout.cards[event.run]: answer.to_html()}
            elif isinstance(event, RunFinished):
                yield {layout.cards[event.run]: AnswerCard(event.run, query.layer, result=event.result).to_html()}
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
        yield {layout.verdict: verdict_line(said), layout.header: header(vlm, comparison.visual_tokens)}
        if session.is_told_of_switch:
            session.is_told_of_switch = False
            yield {layout.note: gr.HTML(visible=False)}
        yield from self.draw(session, stop)
        yield from self.followed(session, analysis, Part("sweep"), stop)
        if not earlier:
            yield {layout.live: {**analysis.of("sweep").to_json(), "question": query.question.strip()}}
        for tab in self.tabs:
            yield from tab.compared(session, analysis, stop)

    def _begun(self, query: Query, has_full: bool) -> Shown:
        """The cards of the runs that begin."""
        begun = RUNS[1:] if has_full else RUNS
        return {
            self.layout.cards[run]: AnswerCard(run, query.layer, is_running=run == begun[0]).to_html() for run in begun
        }

    def compared(self, session: Session, asked: Asked, query: Query) -> Iterator[Shown]:
        """Make sure that the comparison that is shown is of this query and layer."""
        earlier, shown = session.earlier(query), session.analysis
        if earlier is None or shown is None or shown.prompt is not earlier.prompt or shown.layer != query.layer:
            yield from self.run_withdrawn(session, asked)

    def followed(self, session: Session, analysis: Analysis, part: Part, stop: threading.Event) -> Iterator[Shown]:
        """What is measured after a comparison, whose verdict stands on the page meanwhile."""
        for _ in self.engine.measure(session.visitor, analysis, part, stop, follows=True):
            yield {self.layout.verdict: gr.skip()}

    def draw(self, session: Session, stop: threading.Event) -> Iterator[Shown]:
        """The plot of the tab in view, unless it is drawn already, as part of a comparison."""
        for tab in self.tabs:
            if tab.name == session.open_tab:
                yield from tab.draw(session, stop)
