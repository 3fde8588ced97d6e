"""What the page keeps for one visitor between two clicks."""

from __future__ import annotations

import secrets
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from vtw_demo.comparison.analysis import Analysis
from vtw_demo.comparison.calibration import Calibration
from vtw_demo.comparison.compare import Comparison
from vtw_demo.measurements.attention import AttentionMass
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.plots.overlay import Overlaid
from vtw_demo.plots.tab import ATTENTION, LAST_PROMPT, AttentionQuery, Plot, Quantity, Surface, View
from vtw_demo.plots.tabs import TABS
from vtw_demo.server.query import Query

KEPT_COMPARISONS = 30


@dataclass(frozen=True)
class PastComparison:
    number: int
    comparison: Comparison
    overlaid: Overlaid


HISTORY = TypeAdapter(list[PastComparison])


class Session:
    def __init__(self) -> None:
        self.visitor = secrets.token_hex(8)  # tells this visitor apart from others where they take turns
        self.vlm: VisionLanguageModel | None = None  # that the page is about; None before its start
        self.link: dict[str, str] = {}  # the parameters of the address that they came by
        self.stop = threading.Event()  # of the visitor's latest run
        self.measuring = threading.Event()  # of the file that was asked for since then
        self.in_hand = ""  # what runs for the visitor, in words
        self.ended = ""  # a sentence, what the latest request has ended
        self.analysis: Analysis | None = None  # of the comparison that is shown
        self.of = ""  # what was asked, as JSON
        self.note = ""  # what is to be said of its picture
        self.plots: dict[str, Plot] = {}  # those that are drawn, by the tab's name
        self.open_tab = TABS[0].name
        self._seen_since = 0.0
        self.left = threading.Event()  # set once that tab isn't in view any more
        self.queries: dict[str, AttentionQuery] = {}  # whose attention a tab shows, by the tab's name
        self.quantities: dict[str, Quantity] = {}  # what it shows of it, by the tab's name
        self.surface: Surface = "tokens"  # the staircase's
        self.history: list[PastComparison] = []  # the oldest first
        self._latest: tuple[tuple[Any, ...], Analysis] | None = None

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
        map_query = self.query_of("where-it-looks")
        token = map_query if isinstance(map_query, int) else None
        attention, on_map = (self.quantities.get(tab, ATTENTION) for tab in ("attention", "where-it-looks"))
        return View(calibration, self.query_of("attention"), attention, token, on_map, self.surface)

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
        self.queries = {tab: one for tab, one in self.queries.items() if isinstance(one, str) or one < shortest}
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
        masses = full.without_answer(), withdrawn.without_answer()
        overlaid = Overlaid(f"{number}: {comparison.question}", comparison.layer, *masses, kl)
        self.history = [*self.history[1 - KEPT_COMPARISONS :], PastComparison(number, comparison, overlaid)]

    def restore(self, history: Any) -> None:
        """What the browser has kept of it, unless it is of a version with other fields."""
        with suppress(ValueError):
            self.history = HISTORY.validate_json(history)[-KEPT_COMPARISONS:]

    def kept(self) -> str:
        return HISTORY.dump_json(self.history).decode()

    def past(self, number: int | None) -> PastComparison | None:
        return next((past for past in self.history if past.number == number), None)
