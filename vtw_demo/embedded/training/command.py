"""Trains the embedded model: python -m vtw_demo.embedded.training tower | decoder | answers

`tower`: the vision tower and projector learn to write what is at each patch in a fixed code. `decoder`: layers of a
language model learn to answer from that code. The two need nothing of each other and run side by side, a core each.
`answers`: everything together learns to answer about pictures. No step of it withdraws, drops or masks a visual token
in any layer. Each part goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing

from vtw_demo.embedded.questions import SHORT_ANSWER_KINDS
from vtw_demo.embedded.training.initial_weights import prepare, start
from vtw_demo.embedded.training.stages import train_answers, train_decoder, train_tower

# How long a part is trained, and how fast, unless told otherwise.
SCHEDULES: dict[str, dict[str, float]] = {
    "tower": {"steps": 6000, "cooldown": 3000, "rate": 0.01},
    "decoder": {"steps": 2000, "cooldown": 800, "rate": 0.01},
    "answers": {"steps": 1500, "cooldown": 1500, "rate": 0.005},
}


def main() -> None:
    options = parse()
    prepare(options.runs)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(train, (options, f"{folder}/rendezvous"), nprocs=options.processes)


def train(rank: int, options: argparse.Namespace, rendezvous: str) -> None:
    """One of `options.processes` equal processes; the first one prints and saves."""
    torch.distributed.init_process_group(
        "nccl" if options.device == "cuda" else "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=options.processes,
    )
    model, processor, book = start(options)
    if options.part == "tower":
        train_tower(model, book, options)
    elif options.part == "decoder":
        train_decoder(model, processor, book, options)
    else:
        train_answers(model, processor, book, options)
    torch.distributed.destroy_process_group()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vtw_demo.embedded.training",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("part", choices=tuple(SCHEDULES), help="what is trained")
    parser.add_argument("--out", type=Path, default=Path("assets/embedded"), help="where the model is saved")
    parser.add_argument("--runs", type=Path, default=Path("runs/embedded"), help="checkpoints; a run goes on from them")
    parser.add_argument("--start-from", type=Path, help="a model saved earlier, for a start without checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, default=1, help="they share each step's pictures, a core or GPU each")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=shutil.which("g++") is not None,
        help="compile the layers, which takes a C++ compiler",
    )
    parser.add_argument("--steps", type=int, help=f"by default {_of_each_part('steps')}")
    cooldown = "last steps, in which the learning rate falls to 0"
    parser.add_argument("--cooldown", type=int, help=f"{cooldown}; by default {_of_each_part('cooldown')}")
    parser.add_argument("--rate", type=float, help=f"Muon's peak learning rate; by default {_of_each_part('rate')}")
    parser.add_argument("--save-every", type=int, default=50, metavar="STEPS", help="steps between checkpoints")
    parser.add_argument("--batch", type=int, default=16, help="pictures a step")
    parser.add_argument("--turns", type=int, default=18, help="questions asked about a scene, as far as they fit")
    parser.add_argument("--length", type=int, default=448, help="positions a row")
    parser.add_argument("--level", type=int, default=1, help="objects in the first scenes")
    parser.add_argument("--mastery", type=float, default=0.8, help="share right before scenes get one object more")
    parser.add_argument(
        "--emphasis",
        nargs="*",
        choices=SHORT_ANSWER_KINDS,
        default=(),
        metavar="KIND",
        help=f"ask half of the questions of these kinds: {', '.join(SHORT_ANSWER_KINDS)}",
    )
    options = parser.parse_args(arguments)
    for name, value in SCHEDULES[options.part].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def _of_each_part(name: str) -> str:
    return ", ".join(f"{schedule[name]} for the {part}" for part, schedule in SCHEDULES.items())
