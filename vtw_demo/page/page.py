"""What the parts of the page share: how an event of theirs reaches the model, and what a query sets going."""

import inspect
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr

from vtw_demo.comparison.analysis import Analysis, Part
from vtw_demo.comparison.compare import RunFinished, RunProgress
from vtw_demo.errors import UserError
from vtw_demo.measurements.layer_sweep import choose_layer
from vtw_demo.models.loading import EMBEDDED
from vtw_demo.models.registry import find_known_model, starting_layer
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.page.examples import Example
from vtw_demo.page.html import header, problem_line, progress_line, waiting_line
from vtw_demo.page.layout import Layout, default_layer, detail_choices, layer_info
from vtw_demo.page.session import Session
from vtw_demo.plots.answer_cards import AnswerCard, answer_cards, verdict_html
from vtw_demo.plots.tab import View
from vtw_demo.server.engine import SWITCHED, Engine
from vtw_demo.server.query import Query, read_beside
from vtw_demo.server.queue import Place, StoppedError
from vtw_demo.server.upgrade import Upgrade

if TYPE_CHECKING:
    from vtw_demo.page.tabs.tab import PageTab

Shown = dict[Any, Any]
"""New values of components."""
Steps = Callable[..., Iterator[Shown]]
COMPARISON = "the comparison in hand"
# With each progress Gradio 6 writes a component's value back as it was some moments before, and would undo one that has
# come meanwhile. The page says itself how far a run is.
NO_PROGRESS: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": []}


class Asked(NamedTuple):
    """What a visitor asks for, as the browser sends it: nothing of it is checked yet."""

    picture: Any
    clip: Any
    question: Any
    layer: Any
    max_new_tokens: Any
    detail: Any
    beside: Any

    @property
    def of(self) -> str:
        """What `older.js` compares with what the controls hold."""
        return json.dumps(self)

    def query(self, vlm: VisionLanguageModel) -> Query:
        """For this model; a clip goes before the picture."""
        shown = self.clip if self.clip and vlm.sampling else self.picture
        query = Query.read(shown, self.question, self.layer, self.max_new_tokens, vlm.sampling)
        return replace(query, detail=vlm.detail, beside=read_beside(self.beside))


class Page:
    """`first_layer` is the K asked for at the start, `upgrade` what may put another model in this one's place. `tabs`,
    and `tab_bar` that holds them, are laid out before any event is bound."""

    def __init__(
        self, engine: Engine, examples: Sequence[Example], first_layer: int | None, upgrade: Upgrade | None = None
    ) -> None:
        self.engine = engine
        self.upgrade = upgrade
        self.first_vlm = engine.vlm
        self.first_layer = first_layer
        self.layout = Layout(examples, engine.vlm, self.starting_layer(), engine.calibration(engine.vlm))
        self.tabs: list[PageTab] = []
        self.tab_bar: gr.Tabs

    @property
    def shown(self) -> list[Any]:
        """Whatever a step of a run may show, beside the verdict."""
        layout = self.layout
        of_tabs = [component for tab in self.tabs for component in tab.shown]
        others = [*layout.cards.values(), self.tab_bar]
        return [*self.about_model(), *others, *of_tabs]

    def on_model(
        self, event: Any, steps: Steps, inputs: Any = (), outputs: Any = (), says: Any = None, **options: Any
    ) -> Any:
        """At `event`, `steps` of a session and the values of `inputs`. Whatever uses the model takes turns in the
        engine's queue, not in Gradio's. The verdict is among the `outputs`; each costs Gradio time in every step. What
        goes wrong it `says`, or the verdict does."""
        return event(
            self._in_sentences(steps, says),
            [self.layout.session, *inputs],
            [self.layout.verdict, *outputs],
            concurrency_limit=None,
            api_visibility="private",
            trigger_mode="multiple",
            **NO_PROGRESS,
            **options,
        )

    def at_once(
        self, event: Any, function: Callable[..., Any], inputs: Any, outputs: Any, says: Any = None, **options: Any
    ) -> Any:
        """At `event`, what needs no model, and waits for nobody. What goes wrong it `says`, or the verdict does."""
        if inspect.isgeneratorfunction(function):
            function = self._in_sentences(function, says)
        settings: dict[str, Any] = {"queue": False, "api_visibility": "private", **NO_PROGRESS, **options}
        return event(function, inputs, outputs, **settings)

    def in_browser(self, event: Any, script: str, inputs: Any = None, outputs: Any = None) -> None:
        """At `event`, a script, without the server."""
        event(fn=None, inputs=inputs, outputs=outputs, js=script, api_visibility="private")

    def run_after(self, event: Any, steps: Steps, *more: Any, named: str = COMPARISON, says: Any = None) -> None:
        """After `event`, which ends what the visitor had running, `steps` of a session, what is asked, and the values
        of `more` inputs: so `named`, and said in the tab that `says` so or in place of the verdict."""
        layout = self.layout

        def begin(session: Session) -> str:
            session.begin(named)
            return (waiting_line if says else progress_line)("Waiting for the model.")

        def run(session: Session, *values: Any) -> Iterator[Shown]:
            stop, fields = session.stop, len(Asked._fields)
            if session.ended:
                gr.Info(session.ended)
            try:
                yield from steps(session, Asked(*values[:fields]), *values[fields:])
            finally:
                if stop is session.stop:
                    session.in_hand = ""

        # A program that calls them as the page does finds them by these names.
        begin.__name__, run.__name__ = f"begin_{steps.__name__}", steps.__name__
        begun = self.at_once(event, begin, [layout.session], [says or layout.verdict], trigger_mode="multiple")
        # Raw values: Gradio's own readers answer a broken picture with a stack trace.
        ran = self.on_model(begun.then, run, [*layout.query, *more], self.shown, says, preprocess=False)
        self.at_once(ran.then, Session.kept, [layout.session], [layout.history])

    def _in_sentences(self, steps: Steps, says: Any = None) -> Steps:
        """`steps`, and in place of an exception one sentence on the page."""

        @wraps(steps)
        def said(*values: Any) -> Iterator[Shown]:
            # Gradio empties every output of what ends without a step, as a run does that a newer one has ended.
            shown: Shown = {self.layout.verdict: gr.skip()}
            try:
                yield from steps(*values)
            except StoppedError:  # by the visitor's next request, which says itself what goes on, or by their own click
                pass
            except Exception as error:
                line = problem_line(self.engine.monitoring.fault_of(error).sentence)
                shown = {says or self.layout.verdict: line}
                if values[0].analysis is None:  # a comparison that it needed has come to nothing
                    shown[self.layout.verdict] = line
            yield shown  # here nothing hangs on the error any more

        return said

    def about_model(self, layer: int | None = None, detail: str | None = None) -> Shown:
        """The page, about the model that is loaded; K is `layer`, or where that one starts, and the picture's detail is
        `detail`, or the server's."""
        layout, vlm = self.layout, self.engine.vlm
        info = layer_info(vlm.layers, starting_layer(vlm), self.engine.calibration(vlm))
        # What answers until another is there isn't what a link is of.
        named = {} if self.upgrade is not None and vlm.name == EMBEDDED else {"model": vlm.name}
        shown: Shown = {
            layout.header: header(vlm),
            layout.model: named | {"detail": vlm.detail},
            layout.detail: gr.update(value=detail or vlm.detail, **detail_choices(vlm)),
            layout.clip: gr.update(visible=vlm.sampling is not None),
            layout.layer: gr.update(maximum=vlm.layers, value=layer or self.starting_layer(), info=info),
            layout.live: None,
        }
        for tab in self.tabs:
            shown |= tab.about_model(vlm)
        return shown

    @property
    def is_upgraded(self) -> bool:
        """Whether the model that answers has taken the embedded one's place."""
        return self.upgrade is not None and self.upgrade.state.vlm is self.engine.vlm

    def awaits(self, name: str) -> bool:
        """Whether a link's model is, or will be, fetched to answer."""
        if self.upgrade is None or self.upgrade.state.vlm is not None or find_known_model(name) is None:
            return False
        return not self.upgrade.state.is_running or self.upgrade.named == name

    def starting_layer(self) -> int:
        """Where K starts with the model that is loaded."""
        vlm = self.engine.vlm
        asked = self.first_layer if vlm is self.first_vlm else None
        return asked or default_layer(starting_layer(vlm), self.engine.calibration(vlm))

    def vlm(self, session: Session, asked: Asked) -> VisionLanguageModel:
        """The model that the visitor's page is about, at the detail asked for. Raises UserError where there is another
        model now, or no such detail."""
        vlm = self.engine.vlm
        if session.vlm is None:
            session.show_model(vlm)
        elif session.vlm is not vlm:
            raise UserError(SWITCHED)
        return vlm.at_detail(asked.detail)

    def run(self, session: Session, asked: Asked) -> Iterator[Shown]:
        """All runs, then what was measured."""
        session.forget()
        yield from self.run_withdrawn(session, asked)

    def run_withdrawn(self, session: Session, asked: Asked) -> Iterator[Shown]:
        """The withdrawn run, and one beside it, by the visitor's earlier full run; that, too, where picture, question
        or cap are others."""
        layout, stop, vlm = self.layout, session.stop, self.vlm(session, asked)
        query = asked.query(vlm)
        earlier = session.earlier(query)
        prompt = earlier.prompt if earlier else query.prompt(vlm)
        full, comparison = earlier.comparison.full if earlier else None, None
        card = partial(AnswerCard, layer=query.layer, of=asked.of, sharing=vlm.sharing, recipe=query.beside)
        session.hide()
        for event in self.engine.compare(session.visitor, vlm, query, prompt, full, stop):
            if isinstance(event, Place):
                begun = {} if event.ahead else {"full": card("full", result=full), "withdrawn": card("withdrawn")}
                begun |= {"beside": card("beside")} if begun and query.beside else {}
                cards = {component: "" for run, component in layout.cards.items() if begun and run not in begun}
                cards |= {layout.cards[run]: answer.to_html() for run, answer in begun.items()}
                yield {layout.verdict: progress_line(str(event)), **cards}
            elif isinstance(event, RunProgress):
                yield {layout.cards[event.run]: card(event.run, progress=event).to_html()}
            elif isinstance(event, RunFinished):
                yield {layout.cards[event.run]: card(event.run, result=event.result).to_html()}
            else:
                comparison = event
        if comparison is None:
            # Where a newer comparison of this visitor has stopped this one, it says itself what goes on.
            if stop is session.stop or session.in_hand != COMPARISON:
                yield {layout.verdict: progress_line("Stopped before both answers were complete.")}
            return
        analysis = earlier.at(comparison) if earlier else Analysis(vlm, prompt, comparison)
        session.show(query, analysis, asked.of)
        yield {**self.answered(session), layout.header: header(vlm, comparison.visual_tokens)}
        yield from self.draw(session, stop)
        yield from self.followed(session, analysis, Part("sweep"), stop)
        # An earlier run of this query may have been ended before it came to this.
        swept, threshold = analysis.of("sweep"), View(self.engine.calibration(vlm)).threshold
        needs = choose_layer(swept.layers, swept.kl, threshold)
        of = {"question": query.question.strip(), "of": asked.of, "needs": needs, "threshold": threshold}
        yield {layout.live: {**swept.to_json(), **of}}
        for tab in self.tabs:
            yield from tab.compared(session, analysis, stop)

    def answered(self, session: Session) -> Shown:
        assert session.analysis is not None
        cards = answer_cards(session.analysis, session.of)
        said = verdict_html(session.analysis, session.note, session.of)
        return {self.layout.verdict: said, **{self.layout.cards[run]: card for run, card in cards.items()}}

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
