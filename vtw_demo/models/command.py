"""`python -m vtw_demo models`: the models that are known to work, as a Markdown table."""

import argparse
from pathlib import Path

from vtw_demo.formats import filled
from vtw_demo.models.registry import KNOWN_MODELS

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
    return filled(Path(__file__).with_name("known_models.md"), models=KNOWN_MODELS)
