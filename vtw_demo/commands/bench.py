"""`python -m vtw_demo bench`: what things cost, in prefills, measured in interleaved runs."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch

from vtw_demo.benchmark import SHAPES, Ratio, measure_sweep, random_model
from vtw_demo.calibration_store import write_whole

HELP = "measure what things cost, in prefills"
DESCRIPTION = (
    "Measure the sweep of every withdrawal layer against one prefill and against a prefill for each K, on a model with "
    "random weights: its speed doesn't depend on what they say. Runs are interleaved; figures are medians of "
    "ratios within a round."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=tuple(SHAPES), default="small", help="the model's shape")
    parser.add_argument("--text-tokens", type=int, default=60, help="text tokens of the prompt")
    parser.add_argument("--tokens-before", type=int, default=30, help="how many of these come before the picture")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of interleaved runs")
    parser.add_argument("--threads", type=int, help="torch's threads; by default as many as torch takes")
    parser.add_argument("--json", type=Path, help="write the result to this file, too")


def run(options: argparse.Namespace) -> int:
    if options.rounds < 1:
        raise ValueError(f"At least 1 round is needed; {options.rounds} were asked for.")
    if options.threads:
        torch.set_num_threads(options.threads)
    model, inputs = random_model(options.shape, options.text_tokens, options.tokens_before)
    ratios = measure_sweep(model, inputs, options.rounds)
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    text = f"{options.text_tokens} text tokens, {options.tokens_before} before the picture"
    shape = f"{options.shape}: {SHAPES[options.shape]}, {text}"
    print(f"{shape}; {machine}, torch {torch.__version__}")
    print(table(ratios))
    if options.json:
        result = {"what": shape, "machine": machine, "ratios": {r.name: r.to_json() for r in ratios}}
        write_whole(options.json, json.dumps(result, indent=1).encode())
    return 0


def table(ratios: tuple[Ratio, ...]) -> str:
    lines = ["| what | median | lowest | highest |", "|---|---|---|---|"]
    lines += [f"| {r.name} | {r.median:.2f} | {min(r.rounds):.2f} | {max(r.rounds):.2f} |" for r in ratios]
    return "\n".join(lines)
