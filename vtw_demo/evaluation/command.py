"""`python -m vtw_demo evaluate`: is quality kept? Accuracy and agreement at each K, on data."""

import argparse
import json
import random
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from tqdm import tqdm

from vtw_demo.comparison.calibration import DEFAULT_SAMPLES, Calibration, CalibrationStore, calibrate
from vtw_demo.comparison.data_rows import FILES, NAMES, add_data_arguments, chosen_columns
from vtw_demo.comparison.machine import this_machine
from vtw_demo.comparison.samples import EMBEDDED_DATA, askable, embedded_samples
from vtw_demo.errors import UserError
from vtw_demo.evaluation import plots
from vtw_demo.evaluation.attention import attention_markdown, mean_attention
from vtw_demo.evaluation.data import BUILT_IN, SHORT_ANSWER_TOKENS, EvaluationData, read_data
from vtw_demo.evaluation.evaluation import Answering, AnswersFile, Evaluation, answer_here, evaluate
from vtw_demo.evaluation.metrics import CONFIDENCE, RESAMPLES
from vtw_demo.evaluation.replicas import Replicas
from vtw_demo.evaluation.second_questions import ask_pairs, figures, markdown, pairs
from vtw_demo.evaluation.variants import FULL, WAYS, Variant, Way, obstacle
from vtw_demo.files import write_whole
from vtw_demo.models.arguments import add_model_arguments, add_options, chosen_model, load_model
from vtw_demo.models.loading import EMBEDDED
from vtw_demo.models.registry import starting_layer
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.plots.attention import where_it_looks
from vtw_demo.plots.images import write_results
from vtw_demo.withdrawal.automatic_layer import THRESHOLD

EMBEDDED_ONLY = "photos"  # which it alone is to answer modestly: others know something of them
MOST_LAYERS = 12
NOT_OF_PAIRS = ("data", "samples", "curve_samples", "ways", "way_layers", "thresholds", "attention_samples", "replicas")
CALIBRATION_SAMPLES = DEFAULT_SAMPLES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    data = f"what to ask: {', '.join(BUILT_IN)}, by default all that go with the model; {FILES}"
    parser.add_argument("--data", nargs="+", metavar="DATA", help=data)
    add_data_arguments(parser, tuple(NAMES), "test")
    usual_layers = f"withdrawal layers: numbers, or ranges such as 4-12; by default all, of many layers {MOST_LAYERS}"
    add_options(
        parser,
        Path(__file__).with_name("evaluate_options.toml"),
        layers={"help": usual_layers},
        ways={"choices": WAYS},
        max_new_tokens={"default": SHORT_ANSWER_TOKENS},
        out={"default": Path("runs/evaluate")},
    )


def run(options: argparse.Namespace) -> int:
    for asked_for in (options.samples, options.curve_samples, options.attention_samples, options.second_questions):
        if asked_for is not None and asked_for < 1:
            raise UserError(f"At least 1 sample is needed; {asked_for} were asked for.")
    if options.second_questions is not None:
        return _second_questions(options)
    if options.replicas is None and options.ray is not None:
        raise UserError(f"--ray {options.ray} is where replicas run: say how many with --replicas.")
    if options.replicas is None:
        return _run(options, answer_here)
    if options.replicas < 1:
        raise UserError(f"At least 1 replica is needed; {options.replicas} were asked for.")
    with Replicas(options.replicas, options.ray, chosen_model(options), options.picture_detail) as replicas:
        return _run(options, replicas.answer)


def _run(options: argparse.Namespace, answering: Answering) -> int:
    ways = () if options.ways is None else options.ways or WAYS
    if options.way_layers and not ways:
        raise UserError("--way-layers says where other ways do it: name these with --ways.")
    if options.thresholds and "auto" not in ways:
        raise UserError("--thresholds are those of auto: name it with --ways.")
    names = options.data or [n for n in BUILT_IN if n != EMBEDDED_ONLY or options.model == EMBEDDED]
    asked = {name: _data(name, options) for name in names}
    vlm = load_model(options)
    for name, data in asked.items():
        if name not in BUILT_IN:
            fit = askable(vlm, data.name, data.samples, options.strict, data.max_new_tokens)
            asked[name] = replace(data, samples=fit)
    calibration = _calibration(vlm)
    calibrated = None if calibration is None else calibration.nearest_layer
    layers = _layers(options.layers, vlm.layers, calibrated)
    compared = calibrated or min(vlm.layers - 1, starting_layer(vlm).layer)
    where = _layers(options.way_layers, vlm.layers, None) if options.way_layers else [compared]
    if not where:
        raise UserError(f"Other ways do it at layers from 1 to {vlm.layers - 1}; --way-layers names none of them.")
    variants, left_out = _variants(vlm, layers, ways, where, options.thresholds or [THRESHOLD])
    for reason in left_out:
        print(f"left out: {reason}", file=sys.stderr)
    of_model = {"model": vlm.name, "revision": vlm.revision, "precision": vlm.precision, "detail": vlm.detail}
    evaluations, files = [], dict[str, AnswersFile]()
    for name, data in asked.items():
        of_data = {"data": data.name, "max_new_tokens": data.max_new_tokens, "seed": options.seed}
        files[name] = AnswersFile(options.out / f"answers-{_slug(name)}.jsonl", of_model | of_data)
    for name, file in files.items():
        for part, in_variants in _parts(asked[name], variants, compared, options.curve_samples, options.seed):
            try:
                with tqdm(total=len(part.samples) * len(in_variants), desc=name, unit="answer") as bar:
                    how = (options.batch_size, options.seed, bar.update, answering)
                    evaluations.append(evaluate(vlm, part, in_variants, file, *how))
            except KeyboardInterrupt:
                print(f"Stopped. What was answered is in {file.path}: the same command goes on there.", file=sys.stderr)
                return 130
            _print(evaluations[-1], calibrated)
    looked_at = options.attention_samples and _attention(vlm, asked[names[0]], options)
    of_calibration = calibration and {
        **{name: getattr(calibration, name) for name in ("layer", "nearest_layer", "threshold", "data")},
        "samples": len(calibration.samples),
        "sentence": calibration.sentence(),
    }
    result = {
        **of_model,
        "layers": vlm.layers,
        "calibration": of_calibration,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": this_machine().to_json(),
        "seed": options.seed,
        "batch_size": options.batch_size,
        "replicas": options.replicas,
        "bootstrap": {"resamples": RESAMPLES, "confidence": CONFIDENCE, "seed": options.seed, "drawn": "pictures"},
        "left_out": left_out,
        "attention": looked_at,
        "evaluations": [evaluation.to_json() for evaluation in evaluations],
    }
    _write(options.out, result, evaluations, calibrated)
    if problems := [file.problem for file in files.values() if file.problem]:
        raise OSError(" ".join(problems))
    return 0


def _second_questions(options: argparse.Namespace) -> int:
    for name in NOT_OF_PAIRS:
        if getattr(options, name) is not None:
            raise UserError(f"--second-questions asks pairs of its own: leave out --{name.replace('_', '-')}.")
    vlm = load_model(options)
    layers = [vlm.layers, *(layer for layer in _layers(options.layers, vlm.layers, None) if layer != vlm.layers)]
    of: dict[str, Any] = {"model": vlm.name, "revision": vlm.revision, "precision": vlm.precision, "layers": layers}
    of |= {"seed": options.seed}
    asked = list(pairs(options.second_questions, options.seed))
    rows = ask_pairs(vlm, asked, layers, options.out / "second-questions.jsonl", of)
    found = figures(rows, layers, options.seed)
    written = {**of, "date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": this_machine().to_json()}
    written |= {"pairs": len(asked), "figures": found, "answers": rows}
    write_whole(options.out / "second-questions.json", json.dumps(written, indent=1).encode())
    print(markdown(found, vlm.layers))
    return 0


def _data(name: str, options: argparse.Namespace) -> EvaluationData:
    if name in BUILT_IN:
        return BUILT_IN[name](options.samples, options.seed)
    of_set = (options.split, options.config)
    data, _ = read_data(name, chosen_columns(options), options.samples, *of_set, options.seed, options.strict)
    return replace(data, max_new_tokens=options.max_new_tokens)


def _parts(
    data: EvaluationData, variants: Sequence[Variant], compared: int, curve_samples: int | None, seed: int
) -> list[tuple[EvaluationData, Sequence[Variant]]]:
    """All of all variants; or some of all, and then all of the full model and at the K that is `compared`."""
    if curve_samples is None or curve_samples >= len(data.samples):
        return [(data, variants)]
    chosen = sorted(random.Random(f"{seed} curve").sample(range(len(data.samples)), curve_samples))
    some = replace(data, name=f"{data.name}, some at every K", samples=tuple(data.samples[i] for i in chosen))
    return [(some, variants), (data, [FULL, Variant("withdrawn", compared)])]


def _attention(vlm: VisionLanguageModel, data: EvaluationData, options: argparse.Namespace) -> dict[str, Any]:
    """Where each layer looks, over some of the questions; it is printed."""
    count = min(options.attention_samples, len(data.samples))
    chosen = random.Random(f"{options.seed} attention").sample(data.samples, count)
    shares = mean_attention(vlm, tqdm(chosen, desc="attention", unit="question"))
    print(f"\nAttention of the last prompt token, {len(chosen)} questions\n\n{attention_markdown(shares)}\n")
    print(where_it_looks(shares), flush=True)
    return {"samples": len(chosen), "shares": shares}


def _calibration(vlm: VisionLanguageModel) -> Calibration | None:
    """The calibration that is kept of a model; the embedded one's is made if there is none."""
    store = CalibrationStore.of(vlm)
    stored = store.result()
    if stored is not None or vlm.name != EMBEDDED:
        return stored
    samples = embedded_samples(CALIBRATION_SAMPLES)
    events = calibrate(vlm, samples, data=EMBEDDED_DATA, store=store)
    *_, made = tqdm(events, desc="calibrating", total=len(samples) + 1)
    assert isinstance(made, Calibration)
    return made


def _layers(written: Sequence[str] | None, layer_count: int, calibrated: int | None) -> list[int]:
    """Those that were asked for, without K = L, which is the full model; else all, or some of many."""
    if written is None:
        every = range(1, layer_count)
        step = max(1, -(-len(every) // MOST_LAYERS))
        return sorted({*every[step - 1 :: step], *([] if calibrated is None else [calibrated])})
    found = set[int]()
    for part in filter(None, ",".join(written).split(",")):
        matched = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if matched is None:
            raise UserError(f"Layers are numbers or ranges such as 4-12; this is {part!r}.")
        first, last = int(matched[1]), int(matched[2] or matched[1])
        if not 1 <= first <= last <= layer_count:
            raise UserError(f"Layers go from 1 to {layer_count}, the number of decoder layers; this is {part!r}.")
        found.update(range(first, last + 1))
    return sorted(found - {layer_count})


def _variants(
    vlm: VisionLanguageModel,
    layers: Sequence[int],
    ways: Sequence[Way],
    way_layers: Sequence[int],
    thresholds: Sequence[float],
) -> tuple[list[Variant], list[str]]:
    """The variants to compare, the full model first, and why some can't be."""
    withdrawn = sorted({*layers, *(way_layers if ways else ())})
    variants, left_out = [FULL, *(Variant("withdrawn", layer) for layer in withdrawn)], []
    for kind in dict.fromkeys(ways):
        of_kind = [Variant(kind, layer) for layer in way_layers]
        if kind == "auto":
            of_kind = [Variant(kind, threshold=threshold) for threshold in thresholds]
        elif kind in ("blind", "own"):
            of_kind = [Variant(kind)]
        for variant in of_kind:
            if reason := obstacle(vlm, variant):
                left_out.append(f"{variant.name}: {reason}")
            else:
                variants.append(variant)
    return variants, left_out


def _print(evaluation: Evaluation, calibrated: int | None) -> None:
    pictures = f"{evaluation.samples} questions about {evaluation.pictures} pictures"
    print(f"\n{evaluation.data}: {pictures}\n\n{plots.evaluation_markdown(evaluation, calibrated)}\n")
    if calibrated is not None and Variant("withdrawn", calibrated) in evaluation.variants:
        print(plots.evaluation_reading(evaluation, calibrated))
    if evaluation.samples_per_second:
        speed = f"{evaluation.samples_per_second:.1f} questions a second, each in {len(evaluation.variants)} ways"
        print(f"{evaluation.answered} answered in {evaluation.seconds:.0f} s: {speed}.", flush=True)


def _write(out: Path, result: dict[str, Any], evaluations: Sequence[Evaluation], calibrated: int | None) -> None:
    contents = {"evaluation.json": json.dumps(result, indent=1)}
    figures, pictures, markdown = [], {}, []
    for evaluation in evaluations:
        curve = plots.evaluation_figure(evaluation)
        figures += [curve, plots.kinds_figure(evaluation, calibrated)]
        # A picture has no text to hover over.
        labelled = {"mode": "lines+markers+text", "textposition": "bottom right", "textfont": {"size": 9}}
        pictures[f"{_slug(evaluation.data)}.png"] = go.Figure(curve).update_traces(
            labelled, selector={"name": "agreement"}
        )
        contents[f"{_slug(evaluation.data)}.csv"] = plots.evaluation_table(evaluation).to_csv()
        markdown.append(f"{evaluation.data}\n\n{plots.evaluation_markdown(evaluation, calibrated)}\n")
    contents["evaluation.md"] = "\n".join(markdown)
    drawn = [figure.to_html(full_html=False, include_plotlyjs=number == 0) for number, figure in enumerate(figures)]
    head = '<!doctype html><meta charset="utf-8"><title>Evaluation</title>'
    contents["evaluation.html"] = "\n".join([head, *drawn])
    write_results(out, contents, pictures)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[-60:] or "data"
