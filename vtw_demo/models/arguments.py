"""The options of everything that loads a model, each with an environment variable, and the progress that is shown."""

import argparse
import os
import threading

from tqdm import tqdm

from vtw_demo.errors import UserError
from vtw_demo.models.loading import EMBEDDED, QUANTIZATIONS, LoadProgress, ModelChoice, VisionLanguageModel, load_choice
from vtw_demo.models.registry import NO_QUANTIZATION, choose_model, from_environment


def switch(variable: str, default: bool = False) -> bool:
    """Whether an environment variable switches on what it names; `default` where it isn't set. Raises UserError."""
    value = os.environ.get(variable, "").strip()
    if value.lower() not in ("", "1", "true", "yes", "on", "0", "false", "no", "off"):
        raise UserError(f"{variable} must be 1 or 0; this is {value!r}.")
    return value.lower() in ("1", "true", "yes", "on") if value else default


def add_model_arguments(parser: argparse.ArgumentParser, default_model: str | None = EMBEDDED) -> None:
    """Add them; `default_model` is what runs where neither option nor variable names one, None for this machine's."""
    parser.add_argument(
        "--model",
        default=from_environment("MODEL") or default_model,
        help=f"'{EMBEDDED}' (the model that ships with the demo), a folder, or a Hugging Face id, see `python -m "
        "vtw_demo models` (also VTW_MODEL)",
    )
    parser.add_argument(
        "--revision",
        default=from_environment("REVISION"),
        help="branch, tag or commit of a model from the hub (also VTW_REVISION)",
    )
    parser.add_argument(
        "--quantization",
        choices=(*QUANTIZATIONS, NO_QUANTIZATION),
        default=from_environment("QUANTIZATION"),
        help="hold the weights of the decoder layers in 4 or 8 bits (bitsandbytes) (also VTW_QUANTIZATION)",
    )
    parser.add_argument(
        "--quantize-all",
        action="store_true",
        default=switch("VTW_QUANTIZE_ALL"),
        help="quantize the vision tower, the projector and the head, too (also VTW_QUANTIZE_ALL=1)",
    )
    parser.add_argument(
        "--device",
        default=from_environment("DEVICE"),
        help="where the model runs, as torch names it: cuda, cuda:1, cpu; a GPU if there is one (also VTW_DEVICE)",
    )


def chosen_model(options: argparse.Namespace) -> ModelChoice:
    return choose_model(options.model, options.quantization, options.device, options.revision, options.quantize_all)


def load_model(options: argparse.Namespace) -> VisionLanguageModel:
    """Load the model of the options. Raises what `load` does."""
    return load_with_bars(chosen_model(options))


def load_with_bars(choice: ModelChoice) -> VisionLanguageModel:
    """Load a model, on the error stream a progress bar for each step whose length is known."""
    left = threading.Event()
    step, bar = "", tqdm(disable=True)

    def show(progress: LoadProgress) -> None:
        nonlocal step, bar
        if left.is_set():
            raise InterruptedError("Nobody waits for this model any more.")
        if not progress.total:
            return
        if progress.step != step:
            bar.close()
            of_bytes = {"unit": "B", "unit_scale": True} if progress.step == "downloading" else {}
            bar, step = tqdm(total=progress.total, desc=progress.step, disable=None, **of_bytes), progress.step
        bar.update(progress.done - bar.n)

    try:
        return load_choice(choice, show)
    except (KeyboardInterrupt, SystemExit):
        # The model's thread would read on, and keep the process.
        left.set()
        raise
    finally:
        bar.close()
