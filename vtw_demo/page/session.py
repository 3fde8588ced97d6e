"""What the page keeps for one visitor between two clicks."""

from __future__ import annotations

import secrets
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from vtw_demo.comparison.analysis import Analysis
from vtw_demo.comparison.calibration import Calibration
from vtw_demo.comparison.compare import Comparison
from vtw_demo.measurements.attention import AttentionMass
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.plots import attention, attention_map
from vtw_demo.plots.overlay import Overlaid
from vtw_demo.plots.tab import LAST_PROMPT, AttentionQuery, Plot, Surface, View
from vtw_demo.server.query import Query

KEPT_COMPARISONS = 30


@dataclass(frozen=True)
class PastComparison:
    """An entry of the visitor's history, numbered from 1 on."""

    number: int
    comparison: Comparison
    overlaid: Overlaid


HISTORY = TypeAdapter(list[PastComparison])


class Session:
    """- `visitor`: tells this visitor apart from others where they take turns.
    - `vlm`: the model that the page is about; None before its start.
    - `stop`: of the visitor's latest run; `measuring`: of the file that was asked for since then.
    - `in_hand`: what runs for the visitor, in words; `ended`: a sentence, what the latest request has ended.
    - `analysis`: of the comparison that is shown; None while there is none. `of`: what was asked, as
      JSON; `note`: what is to be said of its picture.
    - `plots`: those of the tabs that are drawn, by the tab's name; `open_tab` is the one in view, `left` is set once
      it isn't any more.
    - `queries`: whose attention a tab shows where one was chosen, by the tab's name; `surface`: the staircase's.
    - `history`: the visitor's comparisons, the oldest first.
    """

    def __init__(self) -> None:
        self.visitor = secrets.token_hex(8)
        self.vlm: VisionLanguageModel | None = None
        self.stop = threading.Event()
        self.measuring = threading.Event()
        self.in_hand = ""
        self.ended = ""
        self.analysis: Analysis | None = None
        self.of = ""
        self.note = ""
        self.plots: dict[str, Plot] = {}
        self.open_tab = attention.TAB.name
        self._seen_since = 0.0
        self.left = threading.Event()
        self.queries: dict[str, AttentionQuery] = {}
        self.surface: Surface = "tokens"
        self.history: list[PastComparison] = []
        self._latest: tuple[tuple[str, str, int], Analysis] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Session:
        """Gradio copies a state's first value for each visitor: each gets their own, with nothing in it."""
        return Session()

    def begin(self, named: str) -> None:
        """A new request, so `named`, ends what is still running for this visitor; its own stop event is fresh."""
        self.halt()
        self.ended = f"This ended {self.in_hand}." if self.in_hand not in ("", named) else ""
        self.stop = threading.Event()
        self.in_hand = named
        self.leave()

    def halt(self) -> None:
        """End what is running for this visitor; what they ask for next begins."""
        self.stop.set()
        self.measuring.set()
        self.measuring = threading.Event()
        self.left.set()

    def look_at(self, tab: str, since: float = 0) -> None:
        """That tab is in view, unless a word that came before this one is of a later click: `since`, by its clock."""
        if 0 < since < self._seen_since:
            return
        self._seen_since = since or self._seen_since
        self.open_tab = tab
        self.leave()

    def leave(self) -> None:
        """What is measured for the tab in view gives up its place."""
        self.left.set()
        self.left = threading.Event()

    def forget(self) -> None:
        """What is known of the query in hand: the next run measures all of it again."""
        self._latest = None
        self.hide()

    def show_model(self, vlm: VisionLanguageModel) -> None:
        """The visitor's page is about `vlm` from now on; what was measured of another model can't be gone on with."""
        if self.vlm is not vlm:
            self.vlm = vlm
            self.forget()

    def hide(self) -> None:
        """A new comparison begins: the tabs show an older one."""
        self.analysis = None
        self.plots.clear()

    def view(self, calibration: Calibration | None) -> View:
        """What is chosen in the tabs."""
        map_query = self.query_of(attention_map.TAB.name)
        token = map_query if isinstance(map_query, int) else None
        return View(calibration, self.query_of(attention.TAB.name), token, self.surface)

    def query_of(self, tab: str) -> AttentionQuery:
        return self.queries.get(tab, LAST_PROMPT)

    def earlier(self, query: Query) -> Analysis | None:
        """The latest analysis, if it is of the same query at any layer: its prompt and full run serve again."""
        return self._latest[1] if self._latest is not None and self._latest[0] == query.identity else None

    def show(self, query: Query, analysis: Analysis, of: str) -> None:
        """`analysis` is what is shown from now on."""
        if self._latest is None or self._latest[1].prompt is not analysis.prompt:
            self.queries = {}
        shortest = min(len(analysis.comparison.full.tokens), len(analysis.comparison.withdrawn.tokens))
        there = {tab: query for tab, query in self.queries.items() if isinstance(query, str) or query < shortest}
        self.queries = there
        self._latest = (query.identity, analysis)
        self.analysis = analysis
        self.of = of
        self.note = query.note
        self.plots.clear()

    def remember(
        self, comparison: Comparison, full: AttentionMass, withdrawn: AttentionMass, kl: tuple[float, ...]
    ) -> None:
        """Add a comparison to the history, with what its overlay shows: attention of both runs, divergence by K."""
        number = self.history[-1].number + 1 if self.history else 1
        masses = replace(full, answer=()), replace(withdrawn, answer=())
        overlaid = Overlaid(f"{number}: {comparison.question}", comparison.layer, *masses, kl)
        self.history = [*self.history[1 - KEPT_COMPARISONS :], PastComparison(number, comparison, overlaid)]

    def restore(self, history: Any) -> None:
        """What the browser has kept of it, unless it is of a version with other fields."""
        with suppress(ValueError):
            self.history = HISTORY.validate_json(history)[-KEPT_COMPARISONS:]

    def kept(self) -> str:
        """The history, for the browser to keep."""
        return HISTORY.dump_json(self.history).decode()

    def past(self, number: int | None) -> PastComparison | None:
        """The comparison of that number, if it is still remembered."""
        return next((past for past in self.history if past.number == number), None)
