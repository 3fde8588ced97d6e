"""The processor of a model, from the files of its folder, on Pillow alone where transformers has one for it.

transformers' video processors need torchvision, which has to fit the build of torch. So clips become the inputs of
Video-LLaVA and the Qwen-VLs here, by the model's own image processor. Both kinds of model see a clip as pictures of
one size: Video-LLaVA encodes each frame, the Qwen-VLs put two frames into each patch.
"""

import inspect
import json
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer, PreTrainedConfig, ProcessorMixin
from transformers.image_processing_base import BatchFeature
from transformers.models.auto.modeling_auto import AutoModel
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name
from transformers.utils import PushToHubMixin

from vtw_demo.errors import UserError

# Files in which a processor's class may be named, the newest kind first.
_NAMED_IN = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
)

_COUNTED = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens", "num_image_tokens")
FRAMES_APART = ("video_llava",)
FRAMES_IN_PAIRS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
TAKES_CLIPS = FRAMES_APART + FRAMES_IN_PAIRS
"""Types of models that this module prepares clips for."""

TOKENS_PER_FRAME = 768
# Pixels of a frame, or for qwen3_vl of all frames together; transformers' own numbers.
_QWEN2_SIZE = {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28}
_QWEN3_SIZE = {"shortest_edge": 128 * 32 * 32, "longest_edge": 768 * 32 * 32}
# Of models whose files have no chat template: questions as their cards write them.
_TEMPLATES = {
    "paligemma": "{% for part in messages[0]['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else 'answer en ' + part['text'] }}{% endfor %}"
}


def load_processor(folder: Path, config: PreTrainedConfig) -> Any:
    """The processor whose files are in `folder`, its class one of transformers'."""
    kind: Any = _processor_class(folder, config)
    names = kind.get_attributes()
    read: dict[str, Any] = {
        "tokenizer": AutoTokenizer.from_pretrained,
        "image_processor": partial(AutoImageProcessor.from_pretrained, backend="pil"),
        "feature_extractor": AutoFeatureExtractor.from_pretrained,
    }
    if unknown := [name for name in names if name not in (*read, "video_processor")]:
        raise UserError(f"Its processor, a {kind.__name__}, has a part that isn't understood: {', '.join(unknown)}.")
    try:
        parts = {name: read[name](folder, trust_remote_code=False) for name in names if name in read}
    except (ImportError, ValueError) as error:
        if find_spec("torchvision") or "torchvision" not in str(error).lower():
            raise
        needed = f"install the version of it that fits torch {torch.__version__}"
        raise UserError(f"Its pictures are prepared with torchvision, which isn't installed: {needed}.") from error
    if "video_processor" in names:
        video = _read(folder / "processor_config.json").get("video_processor")
        video = video or _read(folder / "video_preprocessor_config.json") or _read(folder / "preprocessor_config.json")
        parts["video_processor"] = ClipProcessor(config.model_type, parts["image_processor"], video)
    settings = {name: value for name, value in kind.get_processor_dict(folder)[0].items() if value is not None}
    counted = {*inspect.signature(kind).parameters} & {*_COUNTED}
    if "vision_feature_select_strategy" in counted and not counted <= settings.keys():
        settings = {**_counted(config), **settings}
    # In the order of the class's own arguments.
    processor = _unchecked(kind).from_args_and_dict([parts[name] for name in names], settings)
    if processor.chat_template is None:
        processor.chat_template = processor.tokenizer.chat_template or _TEMPLATES.get(config.model_type)
    return processor


def _unchecked(kind: Any) -> Any:
    """transformers' check of a processor's parts would need torchvision for a video processor."""
    changed = {
        "check_argument_for_proper_class": lambda self, name, part: type(part),
        "__reduce__": lambda self: (_unpickled, (kind, vars(self))),
    }
    return type(kind.__name__, (kind,), changed)


def _unpickled(kind: Any, parts: dict[str, Any]) -> Any:
    processor = object.__new__(_unchecked(kind))
    vars(processor).update(parts)
    return processor


def _counted(config: PreTrainedConfig) -> dict[str, Any]:
    """What a processor counts visual tokens by, from the model's configuration: older files leave it out."""
    tower = config.vision_config
    patches = (tower.image_size // tower.patch_size) ** 2
    with torch.device("meta"):
        pixels = torch.empty(1, tower.num_channels, tower.image_size, tower.image_size)
        tokens = AutoModel.from_config(tower)(pixels).last_hidden_state.shape[1]
    strategy = getattr(config, "vision_feature_select_strategy", "default")
    return dict(zip(_COUNTED, (tower.patch_size, strategy, tokens - patches, patches), strict=True))


def _processor_class(folder: Path, config: PreTrainedConfig) -> type[ProcessorMixin]:
    for file in _NAMED_IN:
        name = _read(folder / file).get("processor_class")
        if name and (found := processor_class_from_name(name)):
            return found
    by_model: Any = PROCESSOR_MAPPING
    if type(config) not in by_model:
        raise UserError("Its files name no processor that transformers has.")
    return by_model[type(config)]


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


class ClipProcessor(PushToHubMixin):
    """Stands where a processor has its video processor, which transformers knows by its base class to be saved by
    `to_dict`.

    - `model_type`: of the model. Types not in `TAKES_CLIPS` raise UserError when they are given a clip.
    - `image_processor`: the model's own.
    - `settings`: the video processor's, as the model's files have them.
    """

    num_frames = fps = None  # SmolVLM's processor asks for them
    model_input_names = ["pixel_values_videos", "video_grid_thw"]  # noqa: RUF012 - a list in transformers, too

    def __init__(self, model_type: str, image_processor: Any, settings: dict[str, Any]) -> None:
        self.model_type = model_type
        self.image_processor = image_processor
        self.settings = settings
        self.merge_size = getattr(image_processor, "merge_size", 1)
        self.temporal_patch_size = getattr(image_processor, "temporal_patch_size", 1)
        # MiniCPM-V's processor asks for these.
        self.slice_mode, self.downsample_mode = settings.get("slice_mode"), settings.get("downsample_mode")

    def to_dict(self) -> dict[str, Any]:
        return self.settings

    def __call__(self, videos: Sequence[Sequence[Image.Image]], **options: Any) -> BatchFeature:
        """`videos`: for each clip its frames, Pillow's pictures of one size; `options` has the clips' `video_metadata`.

        For Video-LLaVA pixel_values_videos, shape (clips, frames, 3, height, width); for the Qwen-VLs
        pixel_values_videos, shape (patches of all clips, pixels of a patch), and video_grid_thw, shape (clips, 3).
        """
        if self.model_type not in TAKES_CLIPS:
            raise UserError(f"{self.model_type} is asked about pictures here, not about clips: choose a picture.")
        if self.model_type in FRAMES_IN_PAIRS:
            patches, grids = zip(*map(self._patches, videos), strict=True)
            inputs = {"pixel_values_videos": torch.cat(patches), "video_grid_thw": torch.tensor(grids)}
            return BatchFeature({**inputs, "video_metadata": options["video_metadata"]})
        if len(lengths := {len(frames) for frames in videos}) > 1:
            raise UserError(
                f"Clips that are asked about together have the same number of frames; these have {lengths}."
            )
        pixels = [
            self.image_processor(list(frames), return_tensors="pt", return_legacy_image_output=False)["pixel_values"]
            for frames in videos
        ]
        return BatchFeature({"pixel_values_videos": torch.stack(pixels)})

    def _patches(self, frames: Sequence[Image.Image]) -> tuple[torch.Tensor, tuple[int, int, int]]:
        """Patches, shape (patches, channels x 2 x height x width), and their grid (pairs of frames, rows, columns)."""
        depth = self.temporal_patch_size
        frames = [*frames, *[frames[-1]] * (-len(frames) % depth)]
        size = self._size(frames[0], len(frames))
        resized = [frame.resize(size, Image.Resampling.BICUBIC) for frame in frames]
        encoded = self.image_processor(resized, do_resize=False, return_tensors="pt")
        side = self.image_processor.patch_size
        # A picture's patches hold it `depth` times; here each holds `depth` frames in a row.
        of_frame = (
            encoded["pixel_values"].unflatten(1, (-1, depth, side, side))[:, :, 0].unflatten(0, (len(frames), -1))
        )
        paired = of_frame.unflatten(0, (-1, depth)).permute(0, 2, 3, 1, 4, 5)
        _, rows, columns = encoded["image_grid_thw"][0].tolist()
        return paired.flatten(2).flatten(0, 1), (len(frames) // depth, rows, columns)

    def _size(self, frame: Image.Image, count: int) -> tuple[int, int]:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize  # older versions lack it

        whole = self.model_type.startswith("qwen3")
        factor = self.image_processor.patch_size * self.merge_size
        limits = {**(_QWEN3_SIZE if whole else _QWEN2_SIZE), **(self.settings.get("size") or {})}
        # Older files name these.
        smallest = self.settings.get("min_pixels") or limits["shortest_edge"]
        largest = self.settings.get("max_pixels") or limits["longest_edge"]
        share = count if whole else 1
        # The reference implementation (qwen-vl-utils) caps each frame; without it, clips take far more tokens.
        most = max(min(largest / share, TOKENS_PER_FRAME * factor**2), smallest / share)
        height, width = smart_resize(frame.height, frame.width, factor, min_pixels=smallest / share, max_pixels=most)
        return width, height
