"""`python -m vtw_demo models`: the models that are known to work, as a Markdown table."""

import argparse
from pathlib import Path

from vtw_demo.formats import filled
from vtw_demo.models.registry import KNOWN_MODELS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(options: argparse.Namespace) -> int:
    print(table())
    return 0


def table() -> str:
    return filled(Path(__file__).with_name("known_models.txt"), models=KNOWN_MODELS)
