"""`python -m vtw_demo models`: the models that are known to work, as a Markdown table."""

import argparse

from vtw_demo.formats import markdown_table
from vtw_demo.models.registry import KNOWN_MODELS, KnownModel

DESCRIPTION = (
    "What to know of each model before choosing it. Memory is that of the weights with the decoder layers in 4 bits "
    "and the rest in bfloat16; running takes about a tenth and 0.5 GB more. Visual tokens are those of one picture "
    "whose sides have 224 to 2,000 pixels. K is the withdrawal layer to start from, until `calibrate` has measured one."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(options: argparse.Namespace) -> int:
    print(table())
    return 0


def table() -> str:
    heads = "model | id | parameters | in 4 bits | layers | visual tokens | of a clip | K | K from"
    return markdown_table(heads.split(" | "), map(_row, KNOWN_MODELS))


def _row(model: KnownModel) -> list[str]:
    fewest, most = model.visual_tokens
    tokens = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
    clip = "" if model.clip_tokens is None else f"up to {model.clip_tokens:,}"
    title = f"{model.title} (gated)" if model.gated else model.title
    parameters = f"{model.parameters / 1e9:.2f} B"
    memory = f"{model.memory_4bit / 1e9:.1f} GB"
    cells = (title, f"`{model.name}`", parameters, memory, model.layers, tokens, clip, model.layer, model.layer_source)
    return [*map(str, cells)]
