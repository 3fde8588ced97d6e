"""The one model behind the page: whoever wants it, page or API, waits for their turn."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress

from vtw_demo.comparison.analysis import Analysis, Part
from vtw_demo.comparison.calibration import Calibration, CalibrationProgress, CalibrationStore, calibrate
from vtw_demo.comparison.compare import Comparison, Event, LayerAnswer, answer_at_layers, compare_prompt
from vtw_demo.comparison.repeated_timing import RepeatedTiming, repeat_timing
from vtw_demo.comparison.samples import EMBEDDED_DATA, embedded_samples
from vtw_demo.comparison.timed_generate import Run
from vtw_demo.errors import UserError
from vtw_demo.models.loading import VisionLanguageModel
from vtw_demo.models.prompt import Prompt
from vtw_demo.server.hosts import leased, measured, place
from vtw_demo.server.monitoring import Monitoring
from vtw_demo.server.query import Query
from vtw_demo.server.queue import Place, StoppedError, Turns

# How long a run in hand may take to end when the page closes: it ends within a token.
CLOSING_SECONDS = 8.0
STOPPED = "The run was stopped before its end."
SWITCHED = "The model has been switched since this was asked: ask again."
# Generously; README has what a sweep costs.
PREFILLS_OF_A_SWEEP = 3


class Engine:
    """Whatever uses the model takes a turn of `turns`, and yields its places in the queue before anything else; what
    takes long lets others go first between its steps. Closing an iterator ends its turn within a token. Where `vlm`,
    which a request is for, has made way for another model, UserError says so in its turn.

    `calibration` is the last one of this model, by anyone in this cache folder; None before the first.
    """

    def __init__(
        self,
        vlm: VisionLanguageModel,
        store: CalibrationStore,
        turns: Turns | None = None,
        monitoring: Monitoring | None = None,
    ) -> None:
        place(vlm)
        self.monitoring = monitoring or Monitoring()
        self.turns = turns or Turns(monitoring=self.monitoring)
        self.use(vlm, store)

    def use(self, vlm: VisionLanguageModel, store: CalibrationStore) -> None:
        """From now on `vlm` answers. Called within a turn."""
        self.vlm = vlm
        self.store = store
        self.calibration = store.result()
        self.monitoring.loaded(vlm.name, vlm.precision)

    def _until(self, places: Iterator[Place], vlm: VisionLanguageModel) -> Iterator[Place]:
        """`places` up to the turn, in which it must still be this model's."""
        yield from places
        if vlm is not self.vlm:
            raise UserError(SWITCHED)

    def compare(
        self,
        visitor: str,
        vlm: VisionLanguageModel,
        query: Query,
        prompt: Prompt,
        full: Run | None = None,
        stop: threading.Event | None = None,
    ) -> Iterator[Place | Event]:
        """Both runs of `query`; the withdrawn one alone where there is a full one."""
        with suppress(StoppedError), self.turns.asked(visitor, "comparison", stop) as turn:
            yield from self._until(turn.wait(), vlm)
            self.monitoring.asked(query.question, query.layer)
            runs = 2 if full is None else 1
            yield from leased(compare_prompt, vlm, runs, runs * query.max_new_tokens)(
                prompt, query.layer, query.max_new_tokens, full, stop=turn.stop
            )

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
        with suppress(StoppedError), self.turns.asked(visitor, "answer", stop) as turn:
            yield from self._until(turn.wait(), vlm)
            for answer in leased(answer_at_layers, vlm, len(layers), len(layers) * max_new_tokens)(
                prompt, layers, full, max_new_tokens, stop=stop
            ):
                yield answer
                yield from self._until(turn.give_way(), vlm)

    def calibrate(
        self, visitor: str, samples: int, threshold: float, stop: threading.Event
    ) -> Iterator[Place | CalibrationProgress | Calibration]:
        """Calibrate the model on samples that need no file."""
        vlm, store = self.vlm, self.store
        with suppress(StoppedError), self.turns.asked(visitor, "calibration sample", stop) as turn:
            yield from self._until(turn.wait(), vlm)
            chosen = embedded_samples(samples)
            decoded = sum(sample.answer_tokens for sample in chosen if sample.answer_tokens > 1)
            for event in leased(calibrate, vlm, PREFILLS_OF_A_SWEEP * samples, decoded)(
                chosen, threshold, EMBEDDED_DATA, store, stop=stop
            ):
                if isinstance(event, Calibration):
                    self.calibration = event
                yield event
                yield from self._until(turn.give_way(), vlm)

    def repeat_timing(
        self, visitor: str, analysis: Analysis, rounds: int, stop: threading.Event
    ) -> Iterator[Place | RepeatedTiming]:
        """Both runs of a comparison again and again; `analysis` keeps what is measured so far."""
        vlm, longest = analysis.vlm, analysis.longest
        with suppress(StoppedError), self.turns.asked(visitor, "timing round", stop) as turn:
            yield from self._until(turn.wait(), vlm)
            runs = 2 * (rounds + 1)
            for timing in leased(repeat_timing, vlm, runs, runs * longest)(
                analysis.prompt, analysis.layer, longest, rounds, stop=stop
            ):
                analysis.timing = timing
                yield timing
                yield from self._until(turn.give_way(), vlm)

    def measure(
        self, visitor: str, analysis: Analysis, part: Part, stop: threading.Event, *, follows: bool = False
    ) -> Iterator[Place]:
        """Measure a part of an analysis, which keeps it, unless it is known. `follows`: it belongs to what the visitor
        has begun already. Raises StoppedError where `stop` is set before its turn."""
        if analysis.known(part) is not None:
            return
        with self.turns.asked(visitor, "measurement", stop, follows=follows) as turn:
            yield from self._until(turn.wait(), analysis.vlm)
            measured(analysis, part)

    def compare_to_end(self, visitor: str, vlm: VisionLanguageModel, query: Query, stop: threading.Event) -> Analysis:
        """Both runs at once, for those who don't watch. Raises UserError if they are stopped meanwhile."""
        prompt = query.prompt(vlm)
        # To their end: a turn that is left at the comparison counts as stopped.
        events = list(self.compare(visitor, vlm, query, prompt, stop=stop))
        if not events or not isinstance(events[-1], Comparison):
            raise UserError(STOPPED)
        return Analysis(vlm, prompt, events[-1])

    def close(self) -> None:
        """Stop the run in hand and wait for its end; those that wait for their turn get nothing."""
        self.turns.close(CLOSING_SECONDS)
