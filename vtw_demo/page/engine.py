"""The one model behind the page: whoever wants it, page or API, waits for their turn."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from vtw_demo.answers_by_layer import LayerAnswer, answer_at_layers
from vtw_demo.calibration import Calibration, CalibrationProgress, calibrate, stored_calibration
from vtw_demo.calibration_samples import EMBEDDED_DATA, embedded_samples
from vtw_demo.calibration_store import CalibrationStore
from vtw_demo.compare import Comparison, Event, compare
from vtw_demo.examination import Examination
from vtw_demo.models import VisionLanguageModel
from vtw_demo.page.query import Query
from vtw_demo.repeated_timing import RepeatedTiming
from vtw_demo.timed_run import Run

# How long a run in hand may take to end when the page closes: it ends within a token.
CLOSING_SECONDS = 8.0

Part = TypeVar("Part")


class Engine:
    """`calibration` is the last one of this model, by anyone in this cache folder; None before the first."""

    def __init__(self, vlm: VisionLanguageModel, store: CalibrationStore) -> None:
        self.vlm = vlm
        self.store = store
        self.calibration = stored_calibration(store)
        # Not reentrant, and released by whichever of the server's threads gets to the end of a run.
        self._turn = threading.Lock()
        self._stop = threading.Event()
        self._closing = False

    @contextmanager
    def _own_turn(self, stop: threading.Event) -> Iterator[None]:
        """The model, once nobody else uses it; `stop` is set when the page closes."""
        with self._turn:
            self._stop = stop
            if self._closing:
                stop.set()
            yield

    def compare(self, query: Query, full: Run | None = None, stop: threading.Event | None = None) -> Iterator[Event]:
        """`vtw_demo.compare` for `query`; closing the iterator ends the turn."""
        stop = stop or threading.Event()
        with self._own_turn(stop):
            if self._closing:
                return
            yield from compare(
                self.vlm, query.picture, query.question, query.layer, query.max_new_tokens, full=full, stop=stop
            )

    def answer_at_layers(
        self, query: Query, layers: Sequence[int], full: Run, stop: threading.Event
    ) -> Iterator[LayerAnswer]:
        """`query` answered at each of `layers`; closing the iterator ends the turn."""
        with self._own_turn(stop):
            yield from answer_at_layers(
                self.vlm, query.picture, query.question, layers, full, query.max_new_tokens, stop=stop
            )

    def calibrate(
        self, samples: int, threshold: float, stop: threading.Event
    ) -> Iterator[CalibrationProgress | Calibration]:
        """Calibrate the model on samples that need no file; closing the iterator ends the turn."""
        with self._own_turn(stop):
            chosen = embedded_samples(samples)
            for event in calibrate(self.vlm, chosen, threshold, EMBEDDED_DATA, self.store, stop):
                if isinstance(event, Calibration):
                    self.calibration = event
                yield event

    def measure(self, part: Callable[[], Part]) -> Part:
        """What `part` gives, which uses the model, while nobody else does."""
        with self._turn:
            return part()

    def repeat_timing(self, examination: Examination, rounds: int, stop: threading.Event) -> Iterator[RepeatedTiming]:
        """Both runs of a comparison again and again; closing the iterator ends the turn."""
        with self._own_turn(stop):
            yield from examination.repeat_timing(rounds, stop)

    def compare_to_end(self, query: Query) -> Comparison:
        """Both runs at once, for those who don't watch. Raises RuntimeError if the page closes meanwhile."""
        comparison = None
        for event in self.compare(query):
            if isinstance(event, Comparison):
                comparison = event
        if comparison is None:
            raise RuntimeError("The server is closing.")
        return comparison

    def close(self) -> None:
        """Stop the run in hand and wait for its end; those that wait for their turn get nothing."""
        self._closing = True
        self._stop.set()
        if self._turn.acquire(timeout=CLOSING_SECONDS):
            self._turn.release()
