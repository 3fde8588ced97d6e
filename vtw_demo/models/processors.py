"""The processor of a model, from the files of its folder, on Pillow alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer, PreTrainedConfig, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name

from vtw_demo.errors import UserError
from vtw_demo.models.video_processor import ClipProcessor

# Files in which a processor's class may be named, the newest kind first.
_NAMED_IN = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
)


def load_processor(folder: Path, config: PreTrainedConfig) -> Any:
    """The processor whose files are in `folder`, its class one of transformers'.

    Pictures are prepared by Pillow, clips by `ClipProcessor`, so that the same is done with torchvision and
    without it.

    Raises ValueError where there is none, OSError for files that are missing, ImportError for packages that are.
    """
    kind = _processor_class(folder, config)
    parts: dict[str, Any] = {}
    for name in kind.get_attributes():
        if name == "tokenizer":
            parts[name] = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        elif name == "image_processor":
            parts[name] = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
        elif name == "feature_extractor":
            parts[name] = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
        elif name != "video_processor":
            raise UserError(f"Its processor, a {kind.__name__}, has a part that isn't understood: {name}.")
    if "video_processor" in kind.get_attributes():
        parts["video_processor"] = ClipProcessor(config.model_type, parts["image_processor"], _video_settings(folder))
    # In the order of the class's own arguments.
    arguments = [parts[name] for name in kind.get_attributes()]
    settings, _ = kind.get_processor_dict(folder)
    processor = _with_clips(kind).from_args_and_dict(arguments, settings)
    if processor.chat_template is None:
        processor.chat_template = processor.tokenizer.chat_template
    return processor


def _processor_class(folder: Path, config: PreTrainedConfig) -> type[ProcessorMixin]:
    names = (_read(folder / name).get("processor_class") for name in _NAMED_IN)
    found = next((kind for name in names if name and (kind := processor_class_from_name(name))), None)
    if found is None and type(config) in PROCESSOR_MAPPING:
        found = PROCESSOR_MAPPING[type(config)]
    if found is None:
        raise UserError("Its files name no processor that transformers has.")
    return found


def _with_clips(kind: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The same class; transformers' check of its parts would need torchvision for a video processor."""
    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": lambda self, name, part: type(part)})


def _video_settings(folder: Path) -> dict[str, Any]:
    nested = _read(folder / "processor_config.json").get("video_processor")
    return nested or _read(folder / "video_preprocessor_config.json") or _read(folder / "preprocessor_config.json")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
