"""Trains the embedded model: python -m vtw_demo.embedded.training tower | whole | search | kept | store

`tower`: the vision tower and projector learn to name what is at each patch. `whole`: projector and all layers of the
language model learn together to answer about pictures. `search` tells which layers can be left out, and what that
costs. `kept`: the layers that it has left, and the tower, go on learning together. `store` saves the model, its
decoder layers in 4 bits. No step withdraws, drops or masks a visual token in any layer. A part of the training starts
from the one before it, and goes on from its own last checkpoint.
"""

import argparse
import shutil
from functools import partial
from pathlib import Path

import torch

from vtw_demo.embedded.training.four_bits import store
from vtw_demo.embedded.training.model import keep_layers, load, start, take_tower
from vtw_demo.embedded.training.parts import answer, name_patches
from vtw_demo.embedded.training.practice import Progress
from vtw_demo.embedded.training.search import find_layers
from vtw_demo.embedded.training.trainer import Trainer
from vtw_demo.files import data_beside
from vtw_demo.models.arguments import add_options

# How long each part is trained, and how fast, unless told otherwise.
SCHEDULES: dict[str, dict[str, float]] = data_beside(__file__, "schedules.toml")
PARTS = tuple(SCHEDULES)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_default_device(options.device)
    {"search": find_layers, "store": store}.get(options.part, train)(options)


def train(options: argparse.Namespace) -> None:
    progress = Progress(options.level)
    if options.part == "tower":
        model, processor = start(options.runs, options.seed)
        layers = list(range(len(model.model.language_model.layers)))
        if options.start_from is not None:
            take_tower(model, options.start_from)
    else:
        model, processor, saved = load(options.runs, PARTS[PARTS.index(options.part) - 1])
        layers = saved["layers"]
    if options.part == "kept":
        layers, progress = options.layers, Progress(**saved["progress"])
        keep_layers(model, layers)
    # In the second part the tower is left as it is, while the layers above it learn what to make of it.
    model.model.vision_tower.requires_grad_(options.part != "whole")
    model.model.language_model.requires_grad_(options.part != "tower")
    if options.compile:
        for layer in (*model.model.vision_tower.encoder.layers, *model.model.language_model.layers):
            layer.compile(dynamic=False)
    trainer = Trainer(model, layers, progress, options)
    trainer.run(partial(name_patches if options.part == "tower" else answer, trainer, processor))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vtw_demo.embedded.training",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("part", choices=(*PARTS, "search", "store"), help="what is done")
    add_options(
        parser,
        Path(__file__).with_name("options.toml"),
        of={"choices": PARTS},
        device={"default": "cuda" if torch.cuda.is_available() else "cpu"},
        compile={"action": argparse.BooleanOptionalAction, "default": shutil.which("g++") is not None},
    )
    options = parser.parse_args(arguments)
    if options.part == "kept" and not options.layers:
        parser.error("which layers are kept? Name them: --layers; search prints which can be left out.")
    for name, value in SCHEDULES.get(options.part, {}).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options
