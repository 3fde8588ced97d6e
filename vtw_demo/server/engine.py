"""The one model behind the page: whoever wants it, page or API, waits for their turn."""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import chain
from queue import SimpleQueue
from typing import Any

from vtw_demo.comparison.analysis import MEASUREMENTS, Analysis, Part, Unknown, measure
from vtw_demo.comparison.calibration import (
    Calibrating,
    Calibration,
    CalibrationProgress,
    CalibrationStore,
    Measurement,
    measure_samples,
)
from vtw_demo.comparison.compare import (
    Comparison,
    Event,
    FollowUpEvent,
    LayerAnswer,
    answer_at_layers,
    ask_on,
    compare_prompt,
    turns_of,
)
from vtw_demo.comparison.follow_up import FollowUp
from vtw_demo.comparison.repeated_timing import RepeatedTiming, repeat_timing
from vtw_demo.comparison.samples import EMBEDDED_DATA, embedded_samples
from vtw_demo.comparison.timed_generate import Run
from vtw_demo.errors import UserError
from vtw_demo.models.devices import on_model_thread
from vtw_demo.models.image import read_picture
from vtw_demo.models.loading import VisionLanguageModel
from vtw_demo.models.picture_detail import Detail
from vtw_demo.models.prompt import Prompt
from vtw_demo.server.hosts import Host, this_machines
from vtw_demo.server.hosts.host import LostError
from vtw_demo.server.monitoring import Monitoring
from vtw_demo.server.query import Query
from vtw_demo.server.queue import Place, StoppedError, Turn, Turns
from vtw_demo.server.shares import Shares

# How long a run in hand may take to end when the page closes: it ends within a token.
CLOSING_SECONDS = 8.0
STOPPED = "The run was stopped before its end."
LOST = "What ran this is lost: it is made again."
SWITCHED = "The model has been switched since this was asked: ask again."
# Generously; README has what a sweep costs.
PREFILLS_OF_A_SWEEP = 3
PREFILLS_OF_A_FOLLOW_UP = 5  # two caches filled, two passes that go on with them, one that reads all


class Engine:
    """Whatever uses the model takes a turn of `turns`, and yields its places in the queue before anything else; what
    takes long lets others go first between its steps. Closing an iterator ends its turn within a token. Where `vlm`,
    which a request is for, has made way for another model, UserError says so in its turn.

    A request's `vlm` is the one that is loaded, perhaps at another picture detail. Each detail has its calibration: the
    last one by anyone in this cache folder; None before the first.
    """

    def __init__(
        self,
        vlm: VisionLanguageModel,
        store: CalibrationStore,
        turns: Turns | None = None,
        monitoring: Monitoring | None = None,
        host: Host | None = None,
    ) -> None:
        self.host = host or this_machines()
        self.host.place(vlm)
        self.monitoring = monitoring or Monitoring()
        self.turns = turns or Turns(monitoring=self.monitoring, at_once=self.host.at_once)
        self.use(vlm, store)

    def use(self, vlm: VisionLanguageModel, store: CalibrationStore) -> None:
        """From now on `vlm` answers. Called within a turn."""
        self.vlm = vlm
        self._stores = {vlm.detail: store}
        self._calibrations = {vlm.detail: store.result()}
        self._picture_tokens: dict[tuple[int, int], dict[Detail, int]] = {}
        self.monitoring.loaded(vlm.name, vlm.precision)

    def store(self, vlm: VisionLanguageModel) -> CalibrationStore:
        if vlm.detail not in self._stores:
            self._stores[vlm.detail] = CalibrationStore.of(vlm, self._stores[self.vlm.detail].folder.parent)
        return self._stores[vlm.detail]

    def calibration(self, vlm: VisionLanguageModel) -> Calibration | None:
        if vlm.detail not in self._calibrations:
            self._calibrations[vlm.detail] = self.store(vlm).result()
        return self._calibrations[vlm.detail]

    def picture_tokens(self, file: str) -> dict[Detail, int]:
        """How many visual tokens a picture comes to at each detail that the model has; no turn is taken. Raises what
        `read_picture` does."""
        # In this order: another model may take the place of this one meanwhile.
        known, vlm, (picture, _) = self._picture_tokens, self.vlm, read_picture(file)
        if picture.size not in known:
            known[picture.size] = {detail: vlm.at_detail(detail).picture_tokens(picture) for detail in vlm.details}
        return known[picture.size]

    def _until(self, places: Iterator[Place], vlm: VisionLanguageModel) -> Iterator[Place]:
        """`places` up to the turn, in which it must still be this model's."""
        yield from places
        if vlm.model is not self.vlm.model:
            raise UserError(SWITCHED)

    def _in_steps(
        self, turn: Turn, vlm: VisionLanguageModel, begin: Callable[[], Generator[Any, None, None]]
    ) -> Iterator[Any]:
        """Within `turn`, what `begin` gives: it begins what is left to do. It is called again after others went first,
        and once where what ran it is lost."""
        is_lost = False
        while True:
            try:
                with closing(begin()) as events:
                    for event in events:
                        yield event
                        if turn.is_awaited:
                            break
                    else:
                        return
            except LostError:
                if is_lost:
                    raise
                is_lost = True
                yield Place(0, why=LOST)
            yield from self._until(turn.give_way(), vlm)

    def compare(
        self,
        visitor: str,
        vlm: VisionLanguageModel,
        query: Query,
        prompt: Prompt,
        full: Run | None = None,
        stop: threading.Event | None = None,
    ) -> Iterator[Place | Event]:
        """The runs of `query`; without the full one where there is one already."""
        with suppress(StoppedError), self.turns.asked(visitor, "comparison", stop) as turn:
            yield from self._until(turn.wait(), vlm)
            self.monitoring.asked(query.question, query.layer)
            runs = (full is None) + 1 + (query.beside is not None)
            run = self.host.run(compare_prompt, vlm, runs, runs * query.max_new_tokens)
            asked = prompt, query.layer, query.max_new_tokens, full
            yield from _again_if_lost(lambda: run(*asked, stop=turn.stop, beside=query.beside))

    def ask_on(
        self, visitor: str, analysis: Analysis, question: str, max_new_tokens: int, stop: threading.Event
    ) -> Iterator[Place | FollowUpEvent]:
        """A further question in the conversation of a comparison; `analysis` keeps what comes of it."""
        vlm, layer = analysis.vlm, analysis.layer
        with suppress(StoppedError), self.turns.asked(visitor, "second question", stop) as turn:
            yield from self._until(turn.wait(), vlm)
            self.monitoring.asked(question, layer)
            run = self.host.run(ask_on, vlm, PREFILLS_OF_A_FOLLOW_UP, 3 * max_new_tokens)
            asked = analysis.prompt, turns_of(analysis.comparison, layer), question, layer, max_new_tokens
            for event in _again_if_lost(lambda: run(*asked, stop=turn.stop)):
                if isinstance(event, FollowUp):
                    analysis.follow_up = event
                yield event

    def answer_at_layers(
        self,
        visitor: str,
        vlm: VisionLanguageModel,
        prompt: Prompt,
        layers: Sequence[int],
        full: Run,
        max_new_tokens: int,
        stop: threading.Event,
    ) -> Iterator[Place | LayerAnswer]:
        left = list(layers)

        def begin() -> Generator[LayerAnswer, None, None]:
            run = self.host.run(answer_at_layers, vlm, len(left), len(left) * max_new_tokens)
            for answer in run(prompt, tuple(left), full, max_new_tokens, stop=stop) if left else ():
                left.remove(answer.layer)
                yield answer

        with suppress(StoppedError), self.turns.asked(visitor, "answer", stop) as turn:
            yield from self._until(turn.wait(), vlm)
            yield from self._in_steps(turn, vlm, begin)

    def calibrate(
        self, visitor: str, vlm: VisionLanguageModel, samples: int, threshold: float, stop: threading.Event
    ) -> Iterator[Place | CalibrationProgress | Calibration]:
        """Calibrate the model on samples that need no file, in as many turns as may go on at once."""
        kind, calibrations, told = "calibration sample", self._calibrations, SimpleQueue[CalibrationProgress]()
        with suppress(StoppedError), ThreadPoolExecutor(self.turns.at_once) as others:
            with self.turns.asked(visitor, kind, stop) as turn:
                yield from self._until(turn.wait(), vlm)
                calibrating = Calibrating(vlm, embedded_samples(samples), threshold, EMBEDDED_DATA, self.store(vlm))
                if calibrating.measured:
                    yield calibrating.progress
                shares = Shares(calibrating.left, self.turns.at_once)

                def begin() -> Generator[tuple[str, Measurement], None, None]:
                    with shares.taken() as share:
                        while share and not stop.is_set():
                            decoded = sum(sample.answer_tokens for sample in share if sample.answer_tokens > 1)
                            run = self.host.run(measure_samples, vlm, PREFILLS_OF_A_SWEEP * len(share), decoded)
                            for measured in run(tuple(share), stop=stop):
                                share.popleft()
                                yield measured
                                if shares.is_over:
                                    return
                            shares.take_more(share)

                def beside() -> None:
                    with suppress(StoppedError), self.turns.asked(visitor, kind, stop, follows=True) as other:
                        for event in chain(self._until(other.wait(), vlm), self._in_steps(other, vlm, begin)):
                            if not isinstance(event, Place):
                                told.put(calibrating.keep(*event))

                started = [others.submit(beside) for _ in range(1, min(self.turns.at_once, len(calibrating.left)))]
                try:
                    for event in self._in_steps(turn, vlm, begin):
                        yield event if isinstance(event, Place) else calibrating.keep(*event)
                        while not told.empty():
                            yield told.get()
                except BaseException:
                    shares.is_over = True
                    raise
            for ended in started:
                ended.result()
            while not told.empty():
                yield told.get()
            if not calibrating.left:
                calibrations[vlm.detail] = calibration = calibrating.finish()
                yield calibration

    def repeat_timing(
        self, visitor: str, analysis: Analysis, rounds: int, stop: threading.Event
    ) -> Iterator[Place | RepeatedTiming]:
        """The runs of a comparison again and again; `analysis` keeps what is measured so far."""
        vlm, before = analysis.vlm, None

        def begin() -> Generator[RepeatedTiming, None, None]:
            if (left := rounds - (before.rounds if before else 0)) or not rounds:
                comparison, longest = analysis.comparison, analysis.longest
                runs, recipe = len(comparison.runs()) * (left + 1), comparison.recipe
                run = self.host.run(repeat_timing, vlm, runs, runs * longest)
                yield from run(analysis.prompt, analysis.layer, longest, left, stop=stop, before=before, recipe=recipe)

        with suppress(StoppedError), self.turns.asked(visitor, "timing round", stop) as turn:
            yield from self._until(turn.wait(), vlm)
            for event in self._in_steps(turn, vlm, begin):
                if isinstance(event, RepeatedTiming):
                    analysis.timing = before = event
                yield event

    def measure(
        self, visitor: str, analysis: Analysis, part: Part, stop: threading.Event, *, follows: bool = False
    ) -> Iterator[Place]:
        """Measure a part of an analysis, which keeps it, unless it is known. `follows`: it belongs to what the visitor
        has begun already. Raises StoppedError where `stop` is set before its turn."""
        if analysis.known(part) is not None:
            return
        with self.turns.asked(visitor, "measurement", stop, follows=follows) as turn:
            yield from self._until(turn.wait(), analysis.vlm)
            run = self.host.run(_measured, analysis.vlm, MEASUREMENTS[part.name].prefills)
            for event in _again_if_lost(lambda: run(analysis.prompt, analysis.comparison, part)):
                if isinstance(event, Place):
                    yield event
                    continue
                analysis.keep(part, event)
                if isinstance(event, Unknown):
                    raise UserError(event.why)

    def compare_to_end(self, visitor: str, vlm: VisionLanguageModel, query: Query, stop: threading.Event) -> Analysis:
        """All runs at once, for those who don't watch. Raises UserError if they are stopped meanwhile."""
        prompt = query.prompt(vlm)
        # To their end: a turn that is left at the comparison counts as stopped.
        events = list(self.compare(visitor, vlm, query, prompt, stop=stop))
        if not events or not isinstance(events[-1], Comparison):
            raise UserError(STOPPED)
        return Analysis(vlm, prompt, events[-1])

    def close(self) -> None:
        """Stop the runs in hand and wait for their end; those that wait for their turn get nothing."""
        self.turns.close(CLOSING_SECONDS)
        self.host.close()


def _measured(vlm: VisionLanguageModel, prompt: Prompt, comparison: Comparison, part: Part) -> Iterator[Any]:
    try:
        yield on_model_thread(measure, vlm, prompt, comparison, part)
    except UserError as error:
        yield Unknown(str(error))


def _again_if_lost(run: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    try:
        yield from run()
    except LostError:
        yield Place(0, why=LOST)
        yield from run()
