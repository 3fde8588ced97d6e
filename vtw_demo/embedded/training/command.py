"""Trains the embedded model: python -m vtw_demo.embedded.training tower | whole | kept

`tower`: the vision tower and the projector learn to write what is at each patch. `whole`: projector and all layers of
the language model learn together to answer about pictures. `kept`: the layers that the search has left
(python -m vtw_demo.embedded.training.search), and the tower, go on learning together. No step withdraws, drops or
masks a visual token in any layer. A part starts from the one before it, and goes on from its last checkpoint.
"""

import argparse
import shutil
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from vtw_demo.embedded.training.model import keep_layers, start, take_tower
from vtw_demo.embedded.training.parts import answer, write_codes
from vtw_demo.embedded.training.practice import Progress
from vtw_demo.embedded.training.trainer import Trainer
from vtw_demo.errors import UserError

# How long a part is trained, and how fast, unless told otherwise.
SCHEDULES: dict[str, dict[str, float]] = {
    "tower": {"steps": 6000, "cooldown": 3000, "fine_steps": 0, "rate": 1e-3},
    "whole": {"steps": 700, "cooldown": 50, "fine_steps": 0, "rate": 4e-4},
    "kept": {"steps": 900, "cooldown": 300, "fine_steps": 250, "rate": 4e-4},
}
PARTS = tuple(SCHEDULES)


def main() -> None:
    train(parse())


def train(options: argparse.Namespace) -> None:
    torch.set_default_device(options.device)
    model, processor, layers, progress = load(options)
    for trained in (model.model.vision_tower, model.model.language_model):
        frozen = model.model.vision_tower if options.part == "whole" else model.model.language_model
        trained.requires_grad_(trained is not frozen or options.part == "kept")
    if options.compile:
        for layer in (*model.model.vision_tower.encoder.layers, *model.model.language_model.layers):
            layer.compile(dynamic=False)
    trainer = Trainer(model, layers, progress, options)
    trainer.run((write_codes if options.part == "tower" else answer)(trainer, processor, options))


def load(options: argparse.Namespace) -> tuple[LlavaForConditionalGeneration, LlavaProcessor, list[int], Progress]:
    """The model as the part before has left it, its processor, its decoder's layers by their numbers in SmolLM2-135M,
    and what it has mastered."""
    model, processor = start(options.runs, options.seed)
    layers, progress = list(range(model.config.text_config.num_hidden_layers)), Progress(options.level)
    if options.part == "tower":
        if options.start_from is not None:
            take_tower(model, options.start_from)
        return model, processor, layers, progress
    before = options.runs / f"{PARTS[PARTS.index(options.part) - 1]}.pt"
    if not before.exists():
        raise UserError(f"{before} is not there: train the part before {options.part} first, if only 0 steps.")
    saved = torch.load(before, weights_only=True, mmap=True, map_location=options.device)
    model.load_state_dict(saved["model"])
    if options.part == "kept":
        progress = Progress(**saved["progress"])
        layers = options.layers
        keep_layers(model, layers)
    return model, processor, layers, progress


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vtw_demo.embedded.training",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("part", choices=PARTS, help="what is trained")
    add("--runs", type=Path, default=Path("runs/embedded"), help="checkpoints; a run goes on from them")
    add("--start-from", type=Path, help="a model whose tower and projector the tower's part starts from")
    add("--layers", type=int, nargs="+", metavar="NUMBER", help="the layers that are kept, as the search found them")
    add("--seed", type=int, default=0)
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=shutil.which("g++") is not None,
        help="compile the layers, which takes a C++ compiler",
    )
    for name, number, meaning in (
        ("steps", int, "steps in all"),
        ("cooldown", int, "last steps, in which the learning rate falls to 0"),
        ("fine-steps", int, "last steps, in which answers are learned from all visual tokens"),
        ("rate", float, "AdamW's peak learning rate"),
    ):
        defaults = ", ".join(f"{schedule[name.replace('-', '_')]} for {part}" for part, schedule in SCHEDULES.items())
        add(f"--{name}", type=number, help=f"{meaning}; by default {defaults}")
    add("--save-every", type=int, default=50, metavar="STEPS", help="steps between checkpoints")
    add("--batch", type=int, default=8, help="pictures a step")
    add("--turns", type=int, default=14, help="questions asked about a scene, as far as they fit")
    add("--length", type=int, default=207, help="positions a row, besides the visual tokens'")
    add("--level", type=int, default=2, help="objects in the first scenes")
    add("--mastery", type=float, default=0.8, help="share right before scenes get one object more")
    options = parser.parse_args(arguments)
    if options.part == "kept" and not options.layers:
        parser.error("--layers is needed: which layers are kept?")
    for name, value in SCHEDULES[options.part].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options
