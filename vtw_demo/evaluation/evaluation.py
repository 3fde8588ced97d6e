"""Accuracy, agreement and divergence of a model on a data set, in each way to answer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vtw_demo.errors import UserError
from vtw_demo.evaluation.answering import Outcome, answer_samples
from vtw_demo.evaluation.answers_file import AnswersFile, sample_key
from vtw_demo.evaluation.intervals import Estimate, estimates
from vtw_demo.evaluation.normalisation import normalise
from vtw_demo.evaluation.prefill_times import PrefillTime, prefill_times
from vtw_demo.evaluation.samples import EvaluationData, EvaluationSample, picture_fingerprint
from vtw_demo.evaluation.ways import FULL, Way
from vtw_demo.models.devices import on_model_thread
from vtw_demo.models.vision_language_model import VisionLanguageModel

BATCHES_AT_ONCE = 4
"""After so many batches what was answered is kept: of the answers that differ from the full model's, full batches are
made of several."""
ALL = "all"


@dataclass(frozen=True)
class Figures:
    """How a way to answer did on samples.

    - `accuracy`: the mean score; `agreement`: the share of answers that are the full model's, normalised; `kl`: of the
      first token, in nats.
    - `change`: the accuracy less the full model's on the same samples.
    - `flops_left`: the mean share of the full prefill's FLOPs; None where costs aren't known.

    Raises ValueError without samples.
    """

    samples: int
    accuracy: Estimate
    change: Estimate
    agreement: Estimate
    kl: Estimate
    flops_left: float | None

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError("Figures are of at least one sample.")


@dataclass(frozen=True)
class Evaluation:
    """A model on a data set.

    - `figures`: by the kind of question, `ALL` last, and by the way to answer, in the order that was asked for.
    - `prefill`: the times of each way's prefill.
    - `layers`: L, of the model; `pictures`: how many different ones.
    - `answered`: the samples that were answered in this run and not before, in `seconds`.
    """

    data: str
    layers: int
    samples: int
    pictures: int
    max_new_tokens: int
    score: str
    figures: dict[str, dict[Way, Figures]]
    prefill: dict[Way, PrefillTime]
    answered: int
    seconds: float

    @property
    def ways(self) -> tuple[Way, ...]:
        return tuple(self.figures[ALL])

    @property
    def samples_per_second(self) -> float | None:
        """None where all was answered before."""
        return self.answered / self.seconds if self.answered else None

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {
            "data": self.data,
            "layers": self.layers,
            "samples": self.samples,
            "pictures": self.pictures,
            "max_new_tokens": self.max_new_tokens,
            "score": self.score,
            "answered": self.answered,
            "seconds": self.seconds,
            "samples_per_second": self.samples_per_second,
            "figures": {
                kind: [{"way": way.name, "kind": way.kind, "layer": way.layer, **asdict(f)} for way, f in row.items()]
                for kind, row in self.figures.items()
            },
            "prefill": {way.name: times.to_json() for way, times in self.prefill.items()},
        }


def evaluate(
    vlm: VisionLanguageModel,
    data: EvaluationData,
    ways: Sequence[Way],
    file: AnswersFile,
    batch_size: int = 16,
    seed: int = 0,
    on_answers: Callable[[int], None] = lambda count: None,
) -> Evaluation:
    """Answer what `file` doesn't hold yet, keeping it there as it comes, and measure.

    `on_answers` is called with each number of further answers, those of the file first. Raises ValueError for a batch
    size below 1, and what `answer_samples` raises; OSError where the file can't be written.
    """
    if batch_size < 1:
        raise UserError(f"A batch has at least 1 question; this is {batch_size}.")
    prefill = on_model_thread(prefill_times, vlm, data.samples, ways)
    known: list[dict[Way, Outcome]] = []
    pictures: list[str] = []
    for sample in data.samples:
        kept: dict[str, Outcome] = {}
        picture = ""
        if sample_key(sample) in file.lines:
            picture = picture_fingerprint(sample.open())
            kept = file.outcomes(sample, picture)
        known.append({way: kept[way.name] for way in ways if way.name in kept})
        pictures.append(picture)
        again = FULL in known[-1] and len(known[-1]) < len(ways)
        on_answers(len(known[-1]) - again)
    answered, start = 0, time.perf_counter()
    for indices, missing in _left(known, ways, BATCHES_AT_ONCE * batch_size):
        samples = [data.samples[index] for index in indices]
        # Again, where only others are missing: divergence is from the full model's distribution, which isn't kept.
        asked = [FULL, *(way for way in missing if way != FULL)]
        found = on_model_thread(answer_samples, vlm, samples, asked, data.max_new_tokens, batch_size, seed, on_answers)
        rows = []
        for index, outcomes in zip(indices, found, strict=True):
            sample = data.samples[index]
            known[index] |= outcomes
            pictures[index] = pictures[index] or picture_fingerprint(sample.open())
            held = file.outcomes(sample, pictures[index])
            held |= {way.name: outcome for way, outcome in outcomes.items()}
            rows.append(_row(data, sample, pictures[index], held))
        file.keep(rows)
        answered += len(rows)
    seconds = time.perf_counter() - start
    if answered:
        file.finish(sample_key(sample) for sample in data.samples)
    return Evaluation(
        data=data.name,
        layers=vlm.layers,
        samples=len(data.samples),
        pictures=len(set(pictures)),
        max_new_tokens=data.max_new_tokens,
        score=data.score.__name__,
        figures=_figures(data, known, pictures, ways, seed),
        prefill=prefill,
        answered=answered,
        seconds=seconds,
    )


def _left(
    known: Sequence[Mapping[Way, Outcome]], ways: Sequence[Way], at_once: int
) -> Iterator[tuple[list[int], tuple[Way, ...]]]:
    """Samples to answer together, with the ways that they lack."""
    lacking: dict[tuple[Way, ...], list[int]] = {}
    for index, have in enumerate(known):
        if missing := tuple(way for way in ways if way not in have):
            lacking.setdefault(missing, []).append(index)
    for missing, indices in lacking.items():
        for start in range(0, len(indices), at_once):
            yield indices[start : start + at_once], missing


def _row(
    data: EvaluationData, sample: EvaluationSample, picture: str, outcomes: Mapping[str, Outcome]
) -> dict[str, Any]:
    full = normalise(outcomes[FULL.name].answer)
    return {
        "key": sample_key(sample),
        "name": sample.name,
        "picture": picture,
        "kind": sample.kind,
        "question": sample.question,
        "references": sample.references,
        "ways": {
            name: {
                **outcome.to_json(),
                "score": data.score(outcome.answer, sample.references),
                "agrees": normalise(outcome.answer) == full,
            }
            for name, outcome in outcomes.items()
        },
    }


def _figures(
    data: EvaluationData,
    outcomes: Sequence[Mapping[Way, Outcome]],
    pictures: Sequence[str],
    ways: Sequence[Way],
    seed: int,
) -> dict[str, dict[Way, Figures]]:
    columns = []
    for sample, found in zip(data.samples, outcomes, strict=True):
        full = normalise(found[FULL].answer)
        right = data.score(found[FULL].answer, sample.references)
        row = []
        for way in ways:
            score = data.score(found[way].answer, sample.references)
            row += [score, score - right, float(normalise(found[way].answer) == full), found[way].kl]
        columns.append(row)
    kinds = sorted({sample.kind for sample in data.samples if sample.kind})
    figures: dict[str, dict[Way, Figures]] = {}
    for kind in (*(kinds if len(kinds) > 1 else ()), ALL):
        chosen = [i for i, sample in enumerate(data.samples) if kind == ALL or sample.kind == kind]
        found_here = estimates([columns[i] for i in chosen], [pictures[i] for i in chosen], seed)
        figures[kind] = {}
        for number, way in enumerate(ways):
            shares = [outcomes[i][way].flops_left for i in chosen]
            known = [share for share in shares if share is not None]
            accuracy, change, agreement, kl = found_here[4 * number : 4 * number + 4]
            left = statistics.fmean(known) if len(known) == len(shares) else None
            figures[kind][way] = Figures(len(chosen), accuracy, change, agreement, kl, left)
    return figures
