"""Accuracy, agreement, divergence and prefill times of a model on a data set, in each variant; and the file of its
answers: a line a sample, added as they come, so that a stopped evaluation goes on."""

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import BatchSampler

from vtw_demo.comparison.data_rows import DataSample
from vtw_demo.comparison.timed_generate import timed_generate
from vtw_demo.comparison.timing import in_turn, ratios
from vtw_demo.errors import UserError
from vtw_demo.evaluation.answering import Answers, OnAnswers, Outcome, Request, answer_samples, prompt_sizes, seeds_of
from vtw_demo.evaluation.data import EvaluationData, picture_fingerprint
from vtw_demo.evaluation.metrics import Estimate, estimates, normalise
from vtw_demo.evaluation.variants import FULL, Variant
from vtw_demo.files import write_all, write_whole
from vtw_demo.models.devices import on_model_thread
from vtw_demo.models.vision_language_model import VisionLanguageModel

BATCHES_AT_ONCE = 4
"""After so many batches what was answered is kept: of the answers that differ from the full model's, full batches are
made of several."""
TIMED_ROUNDS = 3
TIMED_PROMPTS = 5
ALL = "all"


@dataclass(frozen=True)
class Figures:
    """How a variant did on samples."""

    samples: int
    accuracy: Estimate  # the mean score
    change: Estimate  # less the full model's on the same samples
    agreement: Estimate  # the share of answers that are the full model's, normalised
    kl: Estimate  # of the first token, in nats
    flops_left: float | None  # the mean share of the full prefill's FLOPs; None where costs aren't known
    mean_layer: float | None = None  # K where each question has one of its own, as its standard deviation
    layer_deviation: float | None = None


@dataclass(frozen=True)
class PrefillTime:
    """Of some rounds of some prompts; ratios are to the full model's in the same round."""

    milliseconds: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        return statistics.median(self.milliseconds)

    @property
    def median_ratio(self) -> float:
        return statistics.median(self.ratios)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "median_ms": self.median_ms, "median_ratio": self.median_ratio}


@dataclass(frozen=True)
class Evaluation:
    """A model of so many decoder layers on a data set."""

    data: str
    layers: int
    samples: int
    pictures: int  # different ones
    max_new_tokens: int
    score: str
    figures: dict[str, dict[Variant, Figures]]  # by the kind of question, `ALL` last, and by variant
    prefill: dict[Variant, PrefillTime]
    answered: int  # in this run and not before
    seconds: float  # that this took

    @property
    def variants(self) -> tuple[Variant, ...]:
        return tuple(self.figures[ALL])

    @property
    def samples_per_second(self) -> float | None:
        """None where all was answered before."""
        return self.answered / self.seconds if self.answered else None

    def to_json(self) -> dict[str, Any]:
        def listed(row: dict[Variant, Figures]) -> list[dict[str, Any]]:
            return [{"way": way.name, **asdict(way), **asdict(found)} for way, found in row.items()]

        return {
            **vars(self),
            "samples_per_second": self.samples_per_second,
            "figures": {kind: listed(row) for kind, row in self.figures.items()},
            "prefill": {variant.name: times.to_json() for variant, times in self.prefill.items()},
        }


class AnswersFile:
    """JSON lines: first what the answers depend on, then a sample a line, with its answer in each way. Where these
    can't be written any more, `problem` says why, until they are."""

    def __init__(self, path: Path, depends_on: dict[str, Any]) -> None:
        self.path = path
        self.depends_on = depends_on
        self.lines: dict[str, dict[str, Any]] = {}
        self.problem: str | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()  # fails before anything is answered
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n")):
            try:
                row = json.loads(line)
                if number and all({"answer", "kl", "flops_left"} <= way.keys() for way in row["ways"].values()):
                    self.lines[row["key"]] = row
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # a line that was being written when its process was killed
            if number == 0 and row.get("depends_on") != self.depends_on:
                raise UserError(
                    f"{path} holds answers of another evaluation: {_changed(row.get('depends_on'), self.depends_on)}. "
                    "Choose another folder with --out, or remove that file."
                )

    def outcomes(self, sample: DataSample, picture: str) -> dict[str, Outcome]:
        """The sample's answers that are there, by the way's name; none where its picture was another one."""
        row = self.lines.get(sample_key(sample))
        if row is None or row.get("picture") != picture:
            return {}
        return {
            name: Outcome(way["answer"], way["kl"], way["flops_left"], way.get("layer"))
            for name, way in row["ways"].items()
        }

    def keep(self, rows: Iterable[dict[str, Any]]) -> None:
        added = {row["key"]: row for row in rows}
        self.lines |= added
        with self._writing(), self.path.open("ab", buffering=0) as file:
            # Begun by a line's end: the last line may have been cut short.
            head = b"\n" if file.tell() else _lines([{"depends_on": self.depends_on}])
            write_all(file.fileno(), head + _lines(added.values()))

    def finish(self, keys: Iterable[str]) -> None:
        """Write the file anew: a line each for these samples, in this order, then what else it held."""
        ordered = dict.fromkeys([*keys, *self.lines])
        rows = [self.lines[key] for key in ordered if key in self.lines]
        with self._writing():
            write_whole(self.path, _lines([{"depends_on": self.depends_on}, *rows]))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
            self.problem = None
        except OSError as error:
            self.problem = f"Answers can't be kept in {self.path}: {error.strerror or error}"


def _lines(rows: Iterable[dict[str, Any]]) -> bytes:
    """JSON, in which halves of pairs are written as its escapes."""
    written = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    return "".join(written).encode(errors="backslashreplace")


def sample_key(sample: DataSample) -> str:
    """Equal for samples that are from the same place and ask the same."""
    said = repr((sample.name, sample.kind, sample.question, sample.references))
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _changed(before: Any, now: dict[str, Any]) -> str:
    if not isinstance(before, dict):
        return "its first line is damaged"
    return "; ".join(
        f"{name} was {before.get(name)!r}, and is {now.get(name)!r}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    )


def answer_here(vlm: VisionLanguageModel, requests: Sequence[Request], on_answers: OnAnswers) -> Iterator[Answers]:
    """What each request is answered by this process, one after the other."""
    for request in requests:
        yield on_model_thread(answer_samples, vlm, *request, on_answers)


Answering = Callable[[VisionLanguageModel, Sequence[Request], OnAnswers], Iterator[Answers]]


def evaluate(
    vlm: VisionLanguageModel,
    data: EvaluationData,
    variants: Sequence[Variant],
    file: AnswersFile,
    batch_size: int = 16,
    seed: int = 0,
    on_answers: OnAnswers = lambda count: None,
    answering: Answering = answer_here,
) -> Evaluation:
    """Answer what `file` doesn't hold yet, keeping it there as it comes, and measure; `on_answers` is called with
    each number of further answers, those of the file first. What `answering` does before it gives an iterator isn't
    timed. Raises UserError for a question that is too long for the model, and what `answering` raises."""
    if batch_size < 1:
        raise UserError(f"A batch has at least 1 question; this is {batch_size}.")
    prefill = on_model_thread(prefill_times, vlm, data.samples, variants)
    known: list[dict[str, Outcome]] = []
    pictures: list[str] = []
    lacking: dict[tuple[Variant, ...], list[int]] = {}
    for index, sample in enumerate(data.samples):
        pictures.append(picture_fingerprint(sample.open()) if sample_key(sample) in file.lines else "")
        known.append(file.outcomes(sample, pictures[-1]))
        missing = tuple(variant for variant in variants if variant.name not in known[-1])
        # Again, where only others are missing: divergence is from the full model's distribution, which isn't kept.
        asked = missing if not missing or FULL in missing else (FULL, *missing)
        on_answers(len(variants) - len(asked))
        if asked:
            lacking.setdefault(asked, []).append(index)
    parts, requests = list[list[int]](), list[Request]()
    for asked, indices in lacking.items():
        for part in BatchSampler(indices, BATCHES_AT_ONCE * batch_size, drop_last=False):
            parts.append(part)
            how = (asked, data.max_new_tokens, batch_size, seed)
            requests.append(Request([data.samples[index] for index in part], *how))
    answers = answering(vlm, requests, on_answers)
    answered, start = 0, time.perf_counter()
    for part, found in zip(parts, answers, strict=True):
        for index, outcomes in zip(part, found, strict=True):
            known[index] |= {variant.name: outcome for variant, outcome in outcomes.items()}
            pictures[index] = pictures[index] or picture_fingerprint(data.samples[index].open())
        file.keep([_row(data, data.samples[index], pictures[index], known[index]) for index in part])
        answered += len(part)
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
        figures=_figures(data, known, pictures, variants, seed),
        prefill=prefill,
        answered=answered,
        seconds=seconds,
    )


def prefill_times(
    vlm: VisionLanguageModel, samples: Sequence[DataSample], variants: Sequence[Variant]
) -> dict[Variant, PrefillTime]:
    """Of each of `variants`, which hold `FULL`, on the first few samples; not of "own", whose K a sweep has to find."""
    variants = [variant for variant in variants if variant.kind != "own"]
    times: dict[Variant, list[float]] = {variant: [] for variant in variants}

    def prefill_ms(inputs: dict[str, Any], variant: Variant, sample: DataSample) -> float:
        context = variant.context(vlm.model, prompt_sizes(vlm, inputs), seeds_of([sample], 0))
        names = [sample.name]
        return timed_generate(vlm.generate, vlm.model, inputs, context, names=names, max_new_tokens=1).prefill_ms

    for sample in samples[:TIMED_PROMPTS]:
        inputs = vlm.prepare(sample.open(), sample.question)
        runs = {variant: partial(prefill_ms, inputs, variant, sample) for variant in variants}
        for variant, milliseconds in in_turn(runs, TIMED_ROUNDS, shown_as="timing"):
            times[variant].append(milliseconds)
    return {variant: PrefillTime(tuple(taken), ratios(taken, times[FULL])) for variant, taken in times.items()}


def _judged(data: EvaluationData, sample: DataSample, outcome: Outcome, full: Outcome) -> tuple[float, bool]:
    """The score of an answer, and whether it is the full model's."""
    return data.score(outcome.answer, sample.references), normalise(outcome.answer) == normalise(full.answer)


def _row(data: EvaluationData, sample: DataSample, picture: str, outcomes: dict[str, Outcome]) -> dict[str, Any]:
    ways = {}
    for name, outcome in outcomes.items():
        score, agrees = _judged(data, sample, outcome, outcomes[FULL.name])
        ways[name] = {**asdict(outcome), "score": score, "agrees": agrees}
    return {
        "key": sample_key(sample),
        "name": sample.name,
        "picture": picture,
        "kind": sample.kind,
        "question": sample.question,
        "references": sample.references,
        "ways": ways,
    }


def _figures(
    data: EvaluationData,
    outcomes: Sequence[Mapping[str, Outcome]],
    pictures: Sequence[str],
    variants: Sequence[Variant],
    seed: int,
) -> dict[str, dict[Variant, Figures]]:
    columns: list[list[float]] = []
    for sample, found in zip(data.samples, outcomes, strict=True):
        full = found[FULL.name]
        right, _ = _judged(data, sample, full, full)
        columns.append([])
        for outcome in (found[variant.name] for variant in variants):
            score, agrees = _judged(data, sample, outcome, full)
            columns[-1] += [score, score - right, agrees, outcome.kl]
    kinds = sorted({sample.kind for sample in data.samples if sample.kind})
    figures: dict[str, dict[Variant, Figures]] = {}
    for kind in (*(kinds if len(kinds) > 1 else ()), ALL):
        chosen = [i for i, sample in enumerate(data.samples) if kind == ALL or sample.kind == kind]
        found_here = estimates([columns[i] for i in chosen], [pictures[i] for i in chosen], seed)
        figures[kind] = {}
        for number, variant in enumerate(variants):
            shares = [share for i in chosen if (share := outcomes[i][variant.name].flops_left) is not None]
            left = statistics.fmean(shares) if len(shares) == len(chosen) else None
            accuracy, change, agreement, kl = found_here[4 * number : 4 * number + 4]
            layers = [layer for i in chosen if (layer := outcomes[i][variant.name].layer) is not None]
            of_layers = (statistics.fmean(layers), statistics.pstdev(layers)) if layers else ()
            figures[kind][variant] = Figures(len(chosen), accuracy, change, agreement, kl, left, *of_layers)
    return figures
