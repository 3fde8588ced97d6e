"""The options that every command which loads a model has."""

import argparse

from vtw_demo.models import EMBEDDED, QUANTIZATIONS, VisionLanguageModel, load


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=EMBEDDED, help=f"'{EMBEDDED}', a folder, or a Hugging Face id")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, help="hold the decoder's weights in 4 or 8 bits")
    parser.add_argument("--device", help="cuda, cuda:1, cpu, ...; by default a GPU if there is one")


def load_model(options: argparse.Namespace) -> VisionLanguageModel:
    return load(options.model, quantization=options.quantization, device=options.device)
