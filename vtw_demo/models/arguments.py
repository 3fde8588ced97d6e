"""The options of everything that loads a model, each with an environment variable, and the progress that is shown."""

import argparse
import os
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vtw_demo.errors import UserError
from vtw_demo.models.loading import (
    EMBEDDED,
    QUANTIZATIONS,
    LoadProgress,
    ModelChoice,
    OnProgress,
    VisionLanguageModel,
    load_choice,
)
from vtw_demo.models.picture_detail import DETAILS, read_detail
from vtw_demo.models.registry import NO_QUANTIZATION, choose_model, from_environment


def layer_or_auto(word: str) -> int | str:
    return word if word == "auto" else int(word)


# What the options of a table can be.
TYPES = {"int": int, "float": float, "path": Path, "layer": layer_or_auto}


def switch(variable: str, default: bool = False) -> bool:
    """Whether an environment variable switches on what it names; `default` where it isn't set. Raises UserError."""
    value = os.environ.get(variable, "").strip()
    if value.lower() not in ("", "1", "true", "yes", "on", "0", "false", "no", "off"):
        raise UserError(f"{variable} must be 1 or 0; this is {value!r}.")
    return value.lower() in ("1", "true", "yes", "on") if value else default


def add_options(parser: argparse._ActionsContainer, table: Path, **more: dict[str, Any]) -> None:
    """Add the options of a table in TOML: by name what `add_argument` takes, `type` by name; `more` of it, as only code
    can say it, by the option's name in the namespace."""
    for name, said in tomllib.loads(table.read_text(encoding="utf-8")).items():
        settings: dict[str, Any] = {**said, **more.get(name.replace("-", "_"), {})}
        if "type" in said:
            settings["type"] = TYPES[said["type"]]
        parser.add_argument(f"--{name}", **settings)


def add_model_arguments(parser: argparse.ArgumentParser, default_model: str | None = EMBEDDED) -> None:
    """Add them; `default_model` is what runs where neither option nor variable names one, None for this machine's."""
    names = ("model", "revision", "quantization", "device")
    more: dict[str, dict[str, Any]] = {name: {"default": from_environment(name.upper())} for name in names}
    more["model"]["default"] = more["model"]["default"] or default_model
    more["quantization"]["choices"] = (*QUANTIZATIONS, NO_QUANTIZATION)
    more["quantize_all"] = {"default": switch("VTW_QUANTIZE_ALL")}
    more["picture_detail"] = {"default": from_environment("PICTURE_DETAIL") or "usual", "choices": DETAILS}
    add_options(parser, Path(__file__).with_name("model_options.toml"), **more)


def chosen_model(options: argparse.Namespace, name: str | None = None) -> ModelChoice:
    """The model of the options, or of that name with the other options."""
    read_detail(options.picture_detail)  # what a variable says isn't checked yet
    name = name or options.model
    return choose_model(name, options.quantization, options.device, options.revision, options.quantize_all)


def load_model(options: argparse.Namespace) -> VisionLanguageModel:
    """Load the model of the options. Raises what `load` does."""
    return load_with_bars(chosen_model(options)).at_detail(options.picture_detail)


def load_with_bars(
    choice: ModelChoice, load: Callable[[ModelChoice, OnProgress], VisionLanguageModel] = load_choice
) -> VisionLanguageModel:
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
        return load(choice, show)
    except (KeyboardInterrupt, SystemExit):
        # The model's thread would read on, and keep the process.
        left.set()
        raise
    finally:
        bar.close()
