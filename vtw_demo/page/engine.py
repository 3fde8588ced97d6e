"""The one model behind the page: whoever wants it, page or API, waits for their turn."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from vtw_demo import compare, measure_attention
from vtw_demo.attention import AttentionMass
from vtw_demo.compare import Comparison, Event
from vtw_demo.models import VisionLanguageModel
from vtw_demo.page.query import Query
from vtw_demo.timed_run import Run

# How long a run in hand may take to end when the page closes: it ends within a token.
CLOSING_SECONDS = 8.0


class Engine:
    def __init__(self, vlm: VisionLanguageModel) -> None:
        self.vlm = vlm
        # Not reentrant, and released by whichever of the server's threads gets to the end of a run.
        self._turn = threading.Lock()
        self._stop = threading.Event()
        self._closing = False

    def compare(self, query: Query, full: Run | None = None, stop: threading.Event | None = None) -> Iterator[Event]:
        """`vtw_demo.compare` for `query`, once nobody else uses the model; closing the iterator ends the turn."""
        stop = stop or threading.Event()
        with self._turn:
            self._stop = stop
            if self._closing:
                return
            events = compare(
                self.vlm, query.picture, query.question, query.layer, query.max_new_tokens, full=full, stop=stop
            )
            yield from events

    def measure_attention(self, query: Query, run: Run, layer: int | None) -> AttentionMass:
        """The attention mass of `query` and the answer of `run`, with the visual tokens withdrawn at `layer`."""
        with self._turn:
            inputs = self.vlm.prepare(query.picture, query.question)
            return measure_attention(self.vlm.model, inputs, run.tokens, layer=layer)

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
