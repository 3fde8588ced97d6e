"""One comparison and what explains it, measured part by part when it is asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import torch

from vtw_demo.comparison.compare import Comparison
from vtw_demo.comparison.layer_times import LayerTimes, measure_layer_times
from vtw_demo.comparison.repeated_timing import RepeatedTiming, repeat_timing
from vtw_demo.comparison.timed_generate import Run
from vtw_demo.errors import UserError
from vtw_demo.measurements.attention import AttentionMass, measure_attention
from vtw_demo.measurements.attention_map import AttentionMap, measure_attention_map
from vtw_demo.measurements.logit_lens import Migration, measure_migration
from vtw_demo.measurements.patch_grid import PatchGeometry, find_patches
from vtw_demo.measurements.query_sweep import QuerySweep, sweep_query
from vtw_demo.measurements.staircase import Staircase, staircase
from vtw_demo.measurements.token_probabilities import AnswerProbabilities, measure_answer_probabilities
from vtw_demo.models.loading import VisionLanguageModel
from vtw_demo.models.video import Clip, Shown


class FullExamination:
    """What is known of a query's full run, whatever the withdrawal layer. Parts are measured once and kept."""

    def __init__(self, vlm: VisionLanguageModel, image: Shown, question: str, run: Run) -> None:
        self.vlm = vlm
        self.image = image
        self.question = question
        self.run = run
        self._maps: dict[int | None, AttentionMap] = {}

    @cached_property
    def inputs(self) -> dict[str, torch.Tensor]:
        return self.vlm.prepare(self.image, self.question)

    @cached_property
    def attention(self) -> AttentionMass:
        return measure_attention(self.vlm.model, self.inputs, self.run.tokens)

    @cached_property
    def sweep(self) -> QuerySweep:
        return sweep_query(self.vlm, self.image, self.question, self.run.tokens)

    @property
    def sweep_so_far(self) -> QuerySweep | None:
        """`sweep` if it has been measured."""
        return vars(self).get("sweep")

    @cached_property
    def patches(self) -> PatchGeometry:
        if isinstance(self.image, Clip):
            raise UserError("Where in a clip each visual token lies isn't known, so nothing can be drawn over it.")
        return find_patches(self.vlm, [self.image], self.inputs)

    def attention_map(self, answer_token: int | None) -> AttentionMap:
        if answer_token not in self._maps:
            self._maps[answer_token] = measure_attention_map(
                self.vlm.model, self.inputs, self.run.tokens, answer_token=answer_token
            )
        return self._maps[answer_token]


class Examination:
    """A comparison and what explains it: `full` is that of its full run, shared by all withdrawal layers.

    Each part comes from passes of its own, which no timing of the comparison includes, the first time that it is
    asked for. What can't be known of a model raises ValueError, in a sentence for people.
    """

    def __init__(self, full: FullExamination, comparison: Comparison) -> None:
        if comparison.full is not full.run:
            raise UserError("The comparison's full run must be the one that is examined.")
        self.full = full
        self.comparison = comparison
        self.timing: RepeatedTiming | None = None
        """Of both runs again and again, once `repeat_timing` has been asked for."""
        self._maps: dict[int | None, AttentionMap] = {}

    @property
    def layer(self) -> int:
        """The withdrawal layer K."""
        return self.comparison.layer

    @property
    def longest(self) -> int:
        """Tokens of the longer of both answers."""
        return max(len(self.comparison.full.tokens), len(self.comparison.withdrawn.tokens))

    @cached_property
    def attention(self) -> AttentionMass:
        """The withdrawn run's; the full run's is in `full`."""
        full = self.full
        return measure_attention(full.vlm.model, full.inputs, self.comparison.withdrawn.tokens, layer=self.layer)

    def attention_map(self, answer_token: int | None) -> AttentionMap:
        """The withdrawn run's for a token of its answer, or for the last prompt position; the full run's is in
        `full`."""
        if answer_token not in self._maps:
            self._maps[answer_token] = measure_attention_map(
                self.full.vlm.model,
                self.full.inputs,
                self.comparison.withdrawn.tokens,
                answer_token=answer_token,
                layer=self.layer,
            )
        return self._maps[answer_token]

    @cached_property
    def migration(self) -> Migration:
        full = self.full
        return measure_migration(full.vlm, full.image, full.question, full.run.tokens, self.layer)

    @cached_property
    def staircase(self) -> Staircase:
        comparison, model = self.comparison, self.full.vlm.model
        prompt = comparison.visual_tokens + comparison.text_tokens
        return staircase(
            model.config, prompt, comparison.visual_tokens, self.layer, bytes_per_element=model.dtype.itemsize
        )

    @cached_property
    def layer_times(self) -> LayerTimes:
        times = measure_layer_times(self.full.vlm.model, self.full.inputs, self.layer)
        assert times is not None
        return times

    @cached_property
    def probabilities(self) -> AnswerProbabilities:
        full, withdrawn = self.full, self.comparison.withdrawn
        return measure_answer_probabilities(
            full.vlm, full.image, full.question, full.run.tokens, withdrawn.tokens, self.layer
        )

    def repeat_timing(self, rounds: int, stop: threading.Event | None = None) -> Iterator[RepeatedTiming]:
        """Both runs again, `rounds` times, interleaved; yields what is measured so far, which `timing` keeps."""
        full = self.full
        for timing in repeat_timing(full.vlm, full.image, full.question, self.layer, self.longest, rounds, stop=stop):
            self.timing = timing
            yield timing

    @property
    def measurements(self) -> tuple[Callable[[], object], ...]:
        """All that a report shows of it, one part at a time: each call measures one unless it is known already."""
        full = self.full
        return (
            *(partial(getattr, full, name) for name in ("attention", "patches", "sweep")),
            *(partial(getattr, self, name) for name in ("attention", "migration", "layer_times", "probabilities")),
            *(partial(one.attention_map, None) for one in (full, self)),
        )

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data for `json.dumps`; what isn't measured yet is measured. The attention maps are those
        that have been asked for, and the last prompt position's."""
        full = self.full
        try:
            patches: dict[str, Any] = full.patches.to_json()
        except UserError as error:  # the maps' weights are known all the same
            patches = {"unknown": str(error)}
        tokens = sorted({None, *full._maps} & {None, *self._maps}, key=lambda token: -1 if token is None else token)
        return {
            "comparison": self.comparison.to_json(),
            "attention": {"full": full.attention.to_json(), "withdrawn": self.attention.to_json()},
            "patches": patches,
            "attention_maps": [
                {"full": full.attention_map(token).to_json(), "withdrawn": self.attention_map(token).to_json()}
                for token in tokens
            ],
            "migration": self.migration.to_json(),
            "staircase": self.staircase.to_json(),
            "layer_times": self.layer_times.to_json(),
            "timing": None if self.timing is None else self.timing.to_json(),
            "sweep": full.sweep.to_json(),
            "probabilities": self.probabilities.to_json(),
        }
