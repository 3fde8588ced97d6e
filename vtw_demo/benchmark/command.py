"""`python -m vtw_demo bench`: what withdrawal saves and what this library's own passes cost, in interleaved runs."""

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from vtw_demo.benchmark.baselines import peers
from vtw_demo.benchmark.costs import STAGES, measure_answers, measure_comparison, measure_overheads
from vtw_demo.benchmark.plots import benchmark_figure
from vtw_demo.benchmark.shapes import SHAPES, random_inputs, random_model
from vtw_demo.comparison.machine import this_machine
from vtw_demo.comparison.timing import Ratio
from vtw_demo.errors import UserError
from vtw_demo.files import check_writable, data_beside, write_whole
from vtw_demo.formats import filled
from vtw_demo.models.arguments import add_options
from vtw_demo.models.devices import give_memory_back
from vtw_demo.models.loading import EMBEDDED, QUANTIZATIONS, VisionLanguageModel, load
from vtw_demo.withdrawal.architectures import find_decoder
from vtw_demo.withdrawal.segments import visual_token_mask

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUESTION = "What is in the picture?"
TOLERANCE = 0.05  # the share by which a ratio may leave the spread of the earlier result's rounds
SUITES: dict[str, list[str]] = data_beside(__file__, "suites.toml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--shape", choices=tuple(SHAPES), default="small", help="an architecture with random weights")
    what.add_argument("--model", help=f"'{EMBEDDED}', a folder, or a Hugging Face id, instead of a shape")
    choices = {"quantization": QUANTIZATIONS, "precision": tuple(PRECISIONS), "suite": tuple(SUITES)}
    more: dict[str, dict[str, Any]] = {name: {"choices": of_option} for name, of_option in choices.items()}
    add_options(parser, Path(__file__).with_name("bench_options.toml"), out={"default": Path("runs/bench")}, **more)


def run(options: argparse.Namespace) -> int:
    if options.suite:
        return _run_suite(options)
    for file in (options.json, options.plot):
        check_writable(file)
    if options.threads:
        torch.set_num_threads(options.threads)
    vlm, model, inputs = _subject(options)
    total = len(find_decoder(model).layers)
    layers = options.layers or sorted({max(1, total * part // 4) for part in (1, 2, 3)} | {total})
    length, visual = inputs["input_ids"].shape[1], visual_token_mask(model.config, inputs["input_ids"][:1])
    found = peers(model, length, int(visual.sum()), layers[len(layers) // 2 - 1]) if options.compare else ()
    others = {peer.name: partial(peer.context, model) for peer in found if peer.context is not None}
    schedules = {peer.name: peer.schedule for peer in found if peer.schedule is not None}
    # Not on the model's thread, which would end its rounds before Ctrl+C ends anything.
    costs = measure_answers(model, inputs, layers, options.new_tokens, options.rounds, others, schedules)
    overheads: tuple[Ratio, ...] = ()
    if not options.no_overheads and options.batch == 1:
        overheads = measure_overheads(model, inputs, options.rounds)
        if vlm is not None:
            picture = Image.new("RGB", (448, 448), "gray")
            overheads += (measure_comparison(vlm, picture, QUESTION, layers[-2], options.new_tokens, options.rounds),)
    prompt = inputs["input_ids"].shape
    precision = options.quantization or str(model.dtype).removeprefix("torch.")
    result = {
        "what": f"{options.model or options.shape}, {precision}, batch {prompt[0]}, {prompt[1]} tokens",
        "new_tokens": options.new_tokens,
        "rounds": options.rounds,
        "machine": this_machine().to_json(),
        "answers": [cost.to_json() for cost in costs],
        "overheads": [ratio.to_json() for ratio in overheads],
        "peers": [{"name": peer.name, "note": peer.note} for peer in found],
    }
    print(f"{result['what']}, {options.new_tokens} new tokens, {options.rounds} rounds; {this_machine()}")
    print(filled(Path(__file__).with_name("answers.txt"), stages=STAGES, costs=costs, peers=found))
    if overheads:
        print(overheads_table(overheads))
    if options.json:
        write_whole(options.json, json.dumps(result, indent=1).encode())
    if options.plot:
        figure = benchmark_figure(costs, str(result["what"]))
        write_whole(options.plot, figure.to_html(include_plotlyjs=True).encode())
    if options.check:
        changes = moved(json.loads(options.check.read_text(encoding="utf-8")), result)
        print("\n".join(changes) or f"No ratio has moved from {options.check}.")
        return 1 if changes else 0
    return 0


def _run_suite(options: argparse.Namespace) -> int:
    """Every command of a suite; one that fails is told, and the others run."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for arguments in SUITES[options.suite]:
        asked = parser.parse_args(arguments.split())
        batch = f"batch-{asked.batch}" if asked.batch > 1 else None
        name = "-".join(filter(None, (asked.model or asked.shape, asked.quantization, batch)))
        asked.json, asked.plot = options.out / f"{name}.json", options.out / f"{name}.html"
        print(f"\n### `python -m vtw_demo bench {arguments}`\n", flush=True)
        try:
            run(asked)
        except (torch.OutOfMemoryError, ValueError, OSError, RuntimeError) as error:
            failed = 1
            print(f"Left out: {str(error).strip().splitlines()[0]}", flush=True)
        give_memory_back()
    return failed


def overheads_table(overheads: Sequence[Ratio]) -> str:
    return filled(Path(__file__).with_name("overheads.txt"), overheads=overheads)


def moved(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """A sentence for each ratio whose median has left the range of the earlier result by more than `TOLERANCE`."""
    if before["what"] != now["what"]:
        raise UserError(f"The earlier result is of {before['what']!r}, this one of {now['what']!r}: measure the same.")
    earlier, sentences = dict(_rounds(before)), []
    for name, rounds in _rounds(now):
        if name not in earlier:
            continue
        low, high, median = min(earlier[name]), max(earlier[name]), statistics.median(rounds)
        if not low * (1 - TOLERANCE) <= median <= high * (1 + TOLERANCE):
            was = statistics.median(earlier[name])
            sentences.append(f"{name}: {median:.3f}, before {was:.3f} ({low:.3f} to {high:.3f}).")
    return tuple(sentences)


def _rounds(result: Mapping[str, Any]) -> Iterator[tuple[str, list[float]]]:
    for answer in result["answers"]:
        for stage, ratios in zip(answer["median_ratio"], answer["ratios"], strict=True):
            if answer["layer"] is not None:
                yield f"{answer['name']}, {stage}", ratios
    for overhead in result["overheads"]:
        yield overhead["name"], overhead["rounds"]


def _subject(options: argparse.Namespace) -> tuple[VisionLanguageModel | None, PreTrainedModel, dict[str, Any]]:
    """What is measured, with a prompt for it; a loaded model with its processor where one was asked for."""
    if options.model:
        vlm = load(options.model, quantization=options.quantization, device=options.device)
        queries = [(Image.new("RGB", (448, 448), "gray"), QUESTION)] * options.batch
        return vlm, vlm.model, vlm.prepare_batch(queries)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    usual = "bfloat16" if device.startswith("cuda") else "float32"
    model = random_model(options.shape, PRECISIONS[options.precision or usual], options.quantization, device)
    inputs = random_inputs(options.shape, model, options.text_tokens, options.tokens_before, options.batch)
    return None, model, inputs
