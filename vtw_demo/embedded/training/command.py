"""Trains the embedded model: python -m vtw_demo.embedded.training tower | decoder | answers

`tower`: the vision tower and projector learn to write what is at each patch in a fixed code. `decoder`: layers of a
language model learn to answer from that code. The two need nothing of each other and run side by side, a core each.
`answers`: everything together learns to answer about pictures. No step of it withdraws, drops or masks a visual token
in any layer. Each part goes on from its last checkpoint.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing

from vtw_demo.embedded.questions import SHORT_ANSWER_KINDS
from vtw_demo.embedded.training.model import prepare, start
from vtw_demo.embedded.training.stages import PARTS

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
    if options.device == "cuda":
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group(
        "nccl" if options.device == "cuda" else "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=options.processes,
    )
    PARTS[options.part](*start(options), options)
    torch.distributed.destroy_process_group()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vtw_demo.embedded.training",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("part", choices=tuple(SCHEDULES), help="what is trained")
    add("--out", type=Path, default=Path("assets/embedded"), help="where the model is saved")
    add("--runs", type=Path, default=Path("runs/embedded"), help="checkpoints; a run goes on from them")
    add("--start-from", type=Path, help="a model saved earlier, for a start without checkpoints")
    add("--seed", type=int, default=0)
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--processes", type=int, default=1, help="they share each step's pictures, a core or GPU each")
    add(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=shutil.which("g++") is not None,
        help="compile the layers, which takes a C++ compiler",
    )
    for name, number, meaning in (
        ("steps", int, "steps in all"),
        ("cooldown", int, "last steps, in which the learning rate falls to 0"),
        ("rate", float, "Muon's peak learning rate"),
    ):
        defaults = ", ".join(f"{schedule[name]} for the {part}" for part, schedule in SCHEDULES.items())
        add(f"--{name}", type=number, help=f"{meaning}; by default {defaults}")
    add("--save-every", type=int, default=50, metavar="STEPS", help="steps between checkpoints")
    add("--batch", type=int, default=16, help="pictures a step")
    add("--turns", type=int, default=18, help="questions asked about a scene, as far as they fit")
    add("--length", type=int, default=448, help="positions a row")
    add("--level", type=int, default=1, help="objects in the first scenes")
    add("--mastery", type=float, default=0.8, help="share right before scenes get one object more")
    emphasis = f"ask half of the questions of these kinds: {', '.join(SHORT_ANSWER_KINDS)}"
    add("--emphasis", nargs="*", choices=SHORT_ANSWER_KINDS, default=(), metavar="KIND", help=emphasis)
    options = parser.parse_args(arguments)
    for name, value in SCHEDULES[options.part].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options
