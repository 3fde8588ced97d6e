"""What the page keeps for one visitor between two clicks."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from vtw_demo.attention import AttentionMass
from vtw_demo.page.query import Query
from vtw_demo.query_sweep import QuerySweep
from vtw_demo.timed_run import Run


@dataclass(frozen=True)
class FullRun:
    """The run in which every layer saw the picture, which serves for every withdrawal layer of the same query."""

    identity: tuple[str, str, int]
    run: Run
    attention: AttentionMass
    sweep: QuerySweep


class Session:
    def __init__(self) -> None:
        self.stop = threading.Event()
        self.full: FullRun | None = None
        self.attention: tuple[AttentionMass, AttentionMass] | None = None
        """Of the comparison that is shown: full, withdrawn."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Session:
        """Gradio copies a state's first value for each visitor: each gets their own, with nothing in it."""
        return Session()

    def begin(self) -> None:
        """A new request ends what is still running for this visitor; its own stop event is fresh."""
        self.stop.set()
        self.stop = threading.Event()

    def earlier_full(self, query: Query) -> FullRun | None:
        return self.full if self.full is not None and self.full.identity == query.identity else None
