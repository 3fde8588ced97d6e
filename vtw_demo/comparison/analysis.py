"""What explains a comparison: the one table of what can be measured of it, and what has been measured so far.

Page, report, API and the leases of ZeroGPU read this table: to measure something else, add a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtw_demo.comparison.compare import Comparison, RunName
from vtw_demo.comparison.follow_up import FollowUp
from vtw_demo.comparison.repeated_timing import LayerTimes, RepeatedTiming, measure_layer_times
from vtw_demo.errors import UserError
from vtw_demo.formats import sentences
from vtw_demo.measurements.attention import AttentionMap, AttentionMass, measure_attention, measure_attention_map
from vtw_demo.measurements.equal_flops import recipe_in_words, schedule_of
from vtw_demo.measurements.flops import Staircase, staircase
from vtw_demo.measurements.logit_lens import Migration, measure_migration
from vtw_demo.measurements.patch_grid import PatchGeometry, find_patches
from vtw_demo.measurements.query_sweep import QuerySweep, sweep_query
from vtw_demo.measurements.token_probabilities import AnswerProbabilities, measure_answer_probabilities
from vtw_demo.models.prompt import Prompt
from vtw_demo.models.video import Clip
from vtw_demo.models.vision_language_model import VisionLanguageModel


@dataclass(frozen=True)
class Part:
    name: str  # of a row of the table
    run: RunName | None = None  # where it is measured of each
    answer_token: int | None = None  # whose attention is asked for, counted from 0; None: the last prompt position's


@dataclass(frozen=True)
class Measurement:
    """A row of the table. `measure` raises UserError for what can't be known of a model."""

    name: str  # also the key in JSON
    measure: Callable[[VisionLanguageModel, Prompt, Comparison, Part], Any]
    prefills: int  # how long it takes at most, in passes over prompt and answer; 0 where the model isn't run
    of_each_run: bool = False  # measured of the full run, of the withdrawn one and of one beside
    of_full_run: bool = False  # it doesn't depend on the withdrawal layer
    by_token: bool = False  # measured for one position at a time

    def parts(self, comparison: Comparison, answer_token: int | None = None) -> tuple[Part, ...]:
        """What there is of it to measure, of that token where it is measured `by_token`."""
        token = answer_token if self.by_token else None
        return tuple(Part(self.name, run, token) for run in (comparison.runs() if self.of_each_run else (None,)))


def _attention(vlm: VisionLanguageModel, prompt: Prompt, comparison: Comparison, part: Part) -> AttentionMass:
    tokens, left = _run(comparison, part)
    return measure_attention(vlm.model, prompt.encoded_inputs, tokens, **left)


def _patches(vlm: VisionLanguageModel, prompt: Prompt, comparison: Comparison, part: Part) -> PatchGeometry:
    if isinstance(prompt.shown, Clip):
        raise UserError("Where in a clip each visual token lies isn't known, so nothing can be drawn over it.")
    return find_patches(vlm, [prompt.shown], prompt.inputs)


def _attention_map(vlm: VisionLanguageModel, prompt: Prompt, comparison: Comparison, part: Part) -> AttentionMap:
    tokens, left = _run(comparison, part)
    return measure_attention_map(vlm.model, prompt.encoded_inputs, tokens, part.answer_token, **left)


def _migration(vlm: VisionLanguageModel, prompt: Prompt, comparison: Comparison, part: Part) -> Migration:
    return measure_migration(vlm, prompt, comparison.full.tokens, comparison.layer)


def _staircase(vlm: VisionLanguageModel, prompt: Prompt, comparison: Comparison, part: Part) -> Staircase:
    size, model = (prompt.length, prompt.visual_tokens), vlm.model
    beside = None if comparison.recipe is None else schedule_of(comparison.recipe)
    return staircase(model.config, *size, comparison.layer, model.dtype.itemsize, beside)


def _layer_times(vlm: VisionLanguageModel, prompt: Prompt, comparison: Comparison, part: Part) -> LayerTimes:
    return measure_layer_times(vlm.model, prompt.encoded_inputs, comparison.layer, recipe=comparison.recipe)


def _sweep(vlm: VisionLanguageModel, prompt: Prompt, comparison: Comparison, part: Part) -> QuerySweep:
    return sweep_query(vlm, prompt, comparison.full.tokens)


def _probabilities(vlm: VisionLanguageModel, prompt: Prompt, comparison: Comparison, part: Part) -> AnswerProbabilities:
    answers = comparison.full.tokens, comparison.withdrawn.tokens
    return measure_answer_probabilities(vlm, prompt, *answers, comparison.layer)


def _run(comparison: Comparison, part: Part) -> tuple[tuple[int, ...], dict[str, Any]]:
    """The tokens of a part's run, and how tokens left in it."""
    if part.run == "beside":
        assert comparison.beside is not None
        return comparison.beside.tokens, {"recipe": comparison.recipe}
    if part.run == "full":
        return comparison.full.tokens, {}
    return comparison.withdrawn.tokens, {"layer": comparison.layer}


MEASUREMENTS: dict[str, Measurement] = {
    row.name: row
    for row in (
        Measurement("attention", _attention, prefills=2, of_each_run=True),
        Measurement("patches", _patches, prefills=0, of_full_run=True),
        Measurement("attention_maps", _attention_map, prefills=2, of_each_run=True, by_token=True),
        Measurement("migration", _migration, prefills=5),
        Measurement("staircase", _staircase, prefills=0),
        Measurement("layer_times", _layer_times, prefills=30),
        Measurement("sweep", _sweep, prefills=5, of_full_run=True),
        Measurement("probabilities", _probabilities, prefills=6),
    )
}


def all_parts(comparison: Comparison) -> tuple[Part, ...]:
    return tuple(part for row in MEASUREMENTS.values() for part in row.parts(comparison))


def measure(vlm: VisionLanguageModel, prompt: Prompt, comparison: Comparison, part: Part) -> Any:
    """What one part comes to, in passes of its own, which no timing of the comparison includes."""
    return MEASUREMENTS[part.name].measure(vlm, prompt, comparison, part)


@dataclass(frozen=True)
class Unknown:
    """In place of what can't be known of a model: why."""

    why: str


@dataclass(eq=False, repr=False)
class Analysis:
    """A comparison with its model and prompt, and what has been measured of it; `timing` and `follow_up` once they have
    been asked for. What is of the full run alone is shared with the analyses of other withdrawal layers (`at`)."""

    vlm: VisionLanguageModel
    prompt: Prompt
    comparison: Comparison
    _of_full_run: dict[Part, Any] = field(default_factory=dict)
    _of_comparison: dict[Part, Any] = field(default_factory=dict, init=False)
    timing: RepeatedTiming | None = field(default=None, init=False)
    follow_up: FollowUp | None = field(default=None, init=False)

    def at(self, comparison: Comparison) -> Analysis:
        """The analysis of a comparison at another withdrawal layer, whose full run is this one's."""
        assert comparison.full is self.comparison.full
        return Analysis(self.vlm, self.prompt, comparison, self._of_full_run)

    @property
    def layer(self) -> int:
        return self.comparison.layer

    @property
    def verdict(self) -> str:
        return verdict(self.comparison, self.timing)

    @property
    def longest(self) -> int:
        """Tokens of the longest answer."""
        return max(len(getattr(self.comparison, run).tokens) for run in self.comparison.runs())

    def known(self, part: Part) -> Any | None:
        kept = self._kept(part).get(part)
        return None if isinstance(kept, Unknown) else kept

    def keep(self, part: Part, result: Any) -> None:
        self._kept(part)[part] = result

    def of(self, name: str, run: RunName | None = None, answer_token: int | None = None) -> Any:
        """A row of the table; measured now unless it is known. Raises UserError for what can't be known."""
        part = Part(name, run, answer_token)
        if isinstance(kept := self._kept(part).get(part), Unknown):
            raise UserError(kept.why)
        if (known := self.known(part)) is None:
            self.keep(part, known := measure(self.vlm, self.prompt, self.comparison, part))
        return known

    def of_runs(self, name: str, answer_token: int | None = None) -> dict[RunName, Any]:
        """A row that is measured `of_each_run`, by run."""
        return {run: self.of(name, run, answer_token) for run in self.comparison.runs()}

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data for `json.dumps`; what isn't measured yet is measured. Where a row can't be known, it
        says why. The attention maps are those that have been asked for of both runs, and the last prompt position's."""
        written: dict[str, Any] = {"verdict": self.verdict, "comparison": self.comparison.to_json()}
        for row in MEASUREMENTS.values():
            tokens = self._tokens(row) if row.by_token else [None]
            try:
                listed = [self._row_to_json(row, token) for token in tokens]
                written[row.name] = listed if row.by_token else listed[0]
            except UserError as error:
                written[row.name] = {"unknown": str(error)}
        asked_for = {"timing": self.timing, "follow_up": self.follow_up}
        return written | {name: None if found is None else found.to_json() for name, found in asked_for.items()}

    def _row_to_json(self, row: Measurement, answer_token: int | None) -> Any:
        if row.of_each_run:
            return {run: found.to_json() for run, found in self.of_runs(row.name, answer_token).items()}
        return self.of(row.name).to_json()

    def _tokens(self, row: Measurement) -> list[int | None]:
        full, withdrawn = (
            {part.answer_token for part in known if part.name == row.name and part.answer_token is not None}
            for known in (self._of_full_run, self._of_comparison)
        )
        return [None, *sorted(full & withdrawn)]

    def _kept(self, part: Part) -> dict[Part, Any]:
        is_shared = part.run == "full" or MEASUREMENTS[part.name].of_full_run
        return self._of_full_run if is_shared else self._of_comparison


def verdict(comparison: Comparison, timing: RepeatedTiming | None = None) -> str:
    """Whether the answers are the same, and where not; what withdrawal saved, or cost; the time of one run each, or of
    more where `timing` has them."""
    rounds = None if timing is None or timing.rounds == 1 else timing
    said_beside = None if comparison.recipe is None else recipe_in_words(comparison.recipe)
    values = {"comparison": comparison, "rounds": rounds, "said_beside": said_beside}
    return sentences(Path(__file__).with_name("verdict.txt"), **values)
