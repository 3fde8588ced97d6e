"""Whether files are a whole checkpoint in transformers' format, and whether its weights fit its architecture."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING

from vtw_demo.errors import UserError
from vtw_demo.formats import sentences
from vtw_demo.models.hub import ADAPTER, CONFIG

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_NAMED = 3
_MERGE = "load both with PEFT, merge them with merge_and_unload, save the result with save_pretrained, and load that"
_WRAPPER = re.compile(r"(^|\.)(base_model\.model|module|_orig_mod|_fsdp_wrapped_module)\.")


def check_format(name: str, folder: Path, listed: Sequence[str]) -> None:
    """Raise UserError where the files `listed` are no model that can be read; its configuration is in `folder`."""

    def read(file: str) -> dict[str, Any]:
        try:
            return dict(json.loads((folder / file).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{refused} its {file} is damaged. Choose another one.") from error

    refused = f"The model {name!r} can't be loaded:"
    config = read(CONFIG) if CONFIG in listed else {}
    fault = sentences(
        Path(__file__).with_name("checkpoint_fault.txt"),
        adapter=read(ADAPTER) if ADAPTER in listed else None,
        config=config if CONFIG in listed else None,
        is_known=config.get("model_type") in CONFIG_MAPPING,
        has_weights=bool({_WEIGHTS, _INDEX} & {*listed}),
        merge=_MERGE,
        version=transformers.__version__,
    )
    if fault:
        raise UserError(f"{refused} {fault}")


def check_files(folder: Path) -> None:
    """Raise UserError for files of weights that are missing or not whole; only their headers are read."""
    files = [_WEIGHTS]
    if not (folder / _WEIGHTS).is_file():
        files = sorted({*json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()})
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise UserError(f"{_INDEX} names files that aren't there: {_some(missing)}. Get them, too.")
    for file in files:
        try:
            safe_open(folder / file, "pt")
        except SafetensorError as error:
            raise UserError(f"{file} is damaged or not whole ({error}). Get it again (git lfs pull).") from error


def check_fit(info: dict[str, Any], saved_by: str | None) -> str:
    """Raise UserError for weights that are missing or have other shapes, by what transformers tells of their loading;
    what is to be said of further ones, in a sentence or "". `saved_by`: the version of transformers that saved them."""
    further, misshapen = sorted(info["unexpected_keys"]), sorted(info["mismatched_keys"])
    faults = [f"{key} (of shape {tuple(held)}, not {tuple(wanted)})" for key, held, wanted in misshapen]
    if not (faults := [*faults, *sorted(info["missing_keys"])]):
        return f"Weights that the model has no place for are left out: {_some(further)}." if further else ""
    advice = "Save the whole model again with save_pretrained."
    if saved_by not in (None, transformers.__version__):
        advice = f"{advice[:-1]}, or try transformers {saved_by}, which saved it; this is {transformers.__version__}."
    if any(0 in held for _, held, _ in misshapen):
        advice = "Some are empty, as ZeRO-3 and FSDP leave them: gather the weights of all processes when saving."
    if any("lora_" in key for key in further):
        advice = f"An adapter (LoRA) is beside its weights: {_MERGE}."
    elif any(map(_WRAPPER.search, further)):
        advice = "It was saved from a wrapper (PEFT, DataParallel, torch.compile, FSDP): save the model inside that."
    others = f", and others are there: {_some(further)}" if further else ""
    raise UserError(f"weights that its {CONFIG} asks for are missing or misshapen: {_some(faults)}{others}. {advice}")


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
