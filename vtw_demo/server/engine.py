"""The one model behind the page: whoever wants it, page or API, waits for their turn."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

from vtw_demo.comparison.analysis import Examination
from vtw_demo.comparison.calibration import Calibration, CalibrationProgress, calibrate, stored_calibration
from vtw_demo.comparison.calibration_store import CalibrationStore
from vtw_demo.comparison.compare import Comparison, Event, compare
from vtw_demo.comparison.every_layer import LayerAnswer, answer_at_layers
from vtw_demo.comparison.repeated_timing import RepeatedTiming
from vtw_demo.comparison.samples import EMBEDDED_DATA, embedded_samples
from vtw_demo.comparison.timed_generate import Run
from vtw_demo.errors import UserError
from vtw_demo.models.loading import VisionLanguageModel
from vtw_demo.server.lease import leased, measured, place
from vtw_demo.server.monitoring import Monitoring
from vtw_demo.server.query import Query
from vtw_demo.server.queue import Place, StoppedError, Turn, Turns

# How long a run in hand may take to end when the page closes: it ends within a token.
CLOSING_SECONDS = 8.0
STOPPED = "The run was stopped before its end."
SWITCHED = "The model has been switched since this was asked: ask again."
# Generously; README has what a sweep costs.
PREFILLS_OF_A_SWEEP = 3

Part = TypeVar("Part")


class Engine:
    """Whatever uses the model takes a turn of `turns`, and yields its places in the queue before anything else; what
    takes long lets others go first between its steps. Closing an iterator ends its turn within a token. Where the model
    that a request is for (`vlm`) has made way for another one, ValueError says so in its turn.

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
        self.turns = turns or Turns(observer=self.monitoring)
        self.use(vlm, store)

    def use(self, vlm: VisionLanguageModel, store: CalibrationStore) -> None:
        """From now on `vlm` answers. Called within a turn."""
        self.vlm = vlm
        self.store = store
        self.calibration = stored_calibration(store)
        self.monitoring.loaded(vlm.name, vlm.precision)

    def _begin(self, turn: Turn, vlm: VisionLanguageModel) -> Iterator[Place]:
        yield from turn.wait()
        self._check(vlm)

    def _give_way(self, turn: Turn, vlm: VisionLanguageModel) -> Iterator[Place]:
        yield from turn.give_way()
        self._check(vlm)

    def _check(self, vlm: VisionLanguageModel) -> None:
        if vlm is not self.vlm:
            raise UserError(SWITCHED)

    def compare(
        self,
        visitor: str,
        vlm: VisionLanguageModel,
        query: Query,
        full: Run | None = None,
        stop: threading.Event | None = None,
    ) -> Iterator[Place | Event]:
        """`vtw_demo.comparison.compare` for `query`."""
        with suppress(StoppedError), self.turns.asked(visitor, "comparison", stop) as turn:
            yield from self._begin(turn, vlm)
            self.monitoring.asked(query.question, query.layer)
            runs = 2 if full is None else 1
            yield from leased(compare, vlm, runs, runs * query.max_new_tokens)(
                vlm, query.picture, query.question, query.layer, query.max_new_tokens, full=full, stop=turn.stop
            )

    def answer_at_layers(
        self,
        visitor: str,
        vlm: VisionLanguageModel,
        query: Query,
        layers: Sequence[int],
        full: Run,
        stop: threading.Event,
    ) -> Iterator[Place | LayerAnswer]:
        """`query` answered at each of `layers`."""
        with suppress(StoppedError), self.turns.asked(visitor, "answer", stop) as turn:
            yield from self._begin(turn, vlm)
            for answer in leased(answer_at_layers, vlm, len(layers), len(layers) * query.max_new_tokens)(
                vlm, query.picture, query.question, layers, full, query.max_new_tokens, stop=stop
            ):
                yield answer
                yield from self._give_way(turn, vlm)

    def calibrate(
        self, visitor: str, samples: int, threshold: float, stop: threading.Event
    ) -> Iterator[Place | CalibrationProgress | Calibration]:
        """Calibrate the model on samples that need no file."""
        vlm, store = self.vlm, self.store
        with suppress(StoppedError), self.turns.asked(visitor, "calibration sample", stop) as turn:
            yield from self._begin(turn, vlm)
            chosen = embedded_samples(samples)
            decoded = sum(sample.answer_tokens for sample in chosen if sample.answer_tokens > 1)
            for event in leased(calibrate, vlm, PREFILLS_OF_A_SWEEP * samples, decoded)(
                vlm, chosen, threshold, EMBEDDED_DATA, store, stop
            ):
                if isinstance(event, Calibration):
                    self.calibration = event
                yield event
                yield from self._give_way(turn, vlm)

    def repeat_timing(
        self, visitor: str, examination: Examination, rounds: int, stop: threading.Event
    ) -> Iterator[Place | RepeatedTiming]:
        """Both runs of a comparison again and again."""
        vlm = examination.full.vlm
        with suppress(StoppedError), self.turns.asked(visitor, "timing round", stop) as turn:
            yield from self._begin(turn, vlm)
            runs = 2 * (rounds + 1)
            for timing in leased(examination.repeat_timing, vlm, runs, runs * examination.longest)(rounds, stop):
                examination.timing = timing
                yield timing
                yield from self._give_way(turn, vlm)

    def measure(
        self,
        visitor: str,
        vlm: VisionLanguageModel,
        part: Callable[[], Part],
        stop: threading.Event,
        *,
        follows: bool = False,
    ) -> Generator[Place, None, Part]:
        """What `part` gives, which uses `vlm`. `follows`: it belongs to what the visitor has begun already.

        Raises StoppedError where `stop` is set before its turn.
        """
        with self.turns.asked(visitor, "measurement", stop, follows=follows) as turn:
            yield from self._begin(turn, vlm)
            return measured(part, vlm)

    def compare_to_end(self, visitor: str, vlm: VisionLanguageModel, query: Query, stop: threading.Event) -> Comparison:
        """Both runs at once, for those who don't watch. Raises ValueError if they are stopped meanwhile."""
        comparison = None
        for event in self.compare(visitor, vlm, query, stop=stop):
            if isinstance(event, Comparison):
                comparison = event
        if comparison is None:
            raise UserError(STOPPED)
        return comparison

    def close(self) -> None:
        """Stop the run in hand and wait for its end; those that wait for their turn get nothing."""
        self.turns.close(CLOSING_SECONDS)
