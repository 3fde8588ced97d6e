"""The figures of `vtw_demo.models.registry`, from the configurations and the processors that the hub's models have.

`python -m tests.hub_figures` writes them into `vtw_demo/models/known_models.json`, and leaves the rest of it as it is.
Processors are transformers' own classes with the settings of the hub's files; that of LFM2.5-VL needs torchvision.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from PIL import Image

from tests.hub_configs import CONFIGS, stored_dtype
from vtw_demo.models import registry
from vtw_demo.models.processors import FRAMES_IN_PAIRS, ClipProcessor
from vtw_demo.models.quantization import describe
from vtw_demo.models.vision_language_model import APART_FRAMES, MOST_FRAMES

FILE = Path(registry.__file__).with_name("known_models.json")
SIDES = range(224, 2001, 16)
SIZES = [(height, width) for height in SIDES for width in SIDES if max(height, width) <= 2 * min(height, width)]
"""(height, width) of the pictures whose visual tokens are counted."""

Count = Callable[[Sequence[tuple[int, int]]], Sequence[int]]
"""How many visual tokens pictures of these sizes become."""


def _by(kind: type, image_processor: Any, **settings: Any) -> Count:
    """As a processor of this class counts, which holds no tokenizer."""
    processor: Any = kind.__new__(kind)
    vars(processor).update(image_processor=image_processor, **settings)
    return lambda sizes: processor._get_num_multimodal_tokens(image_sizes=list(sizes))["num_image_tokens"]


def _qwen_pictures(patch: int, least: int, most: int) -> hf.Qwen2VLImageProcessorPil:
    return hf.Qwen2VLImageProcessorPil(
        patch_size=patch, merge_size=2, size={"shortest_edge": least, "longest_edge": most}
    )


def _llava_next(side: int, tiles: list[list[int]], strategy: str, additional: int) -> Count:
    return _by(
        hf.LlavaNextProcessor,
        hf.LlavaNextImageProcessorPil(size={"shortest_edge": side}, image_grid_pinpoints=tiles),
        patch_size=14,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=additional,
    )


def _onevision() -> Count:
    tiles = [[rows * 384, columns * 384] for rows in range(1, 7) for columns in range(1, 7)]
    return _by(
        hf.LlavaOnevisionProcessor,
        hf.LlavaOnevisionImageProcessorPil(size={"height": 384, "width": 384}, image_grid_pinpoints=tiles),
        num_image_tokens=729,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )


def _internvl() -> Count:
    pictures = hf.GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}, crop_to_patches=True)
    return lambda sizes: [256 * pictures.get_number_of_image_patches(*size) for size in sizes]


def _smolvlm(longest: int, tile: int, tokens: int) -> Count:
    pictures = hf.SmolVLMImageProcessorPil(size={"longest_edge": longest}, max_image_size={"longest_edge": tile})
    return lambda sizes: [tokens * (pictures.get_number_of_image_patches(*size)[0] or 1) for size in sizes]


def minicpm(**settings: Any) -> Count:
    pictures: Any = hf.MiniCPMV4_6ImageProcessorPil(**settings)
    side, patch, mode = pictures.scale_resolution, pictures.patch_size, pictures.downsample_mode

    def count(size: tuple[int, int]) -> int:
        def tokens(height: int, width: int) -> int:
            return (height // patch) * (width // patch) // 16

        grid = pictures.get_sliced_grid(size, pictures.max_slice_nums, side)
        overview = tokens(*pictures.find_best_resize(size, side, patch, mode, allow_upscale=grid is None))
        if grid is None:
            return overview
        height, width = pictures.get_refine_size(size, grid, side, patch, mode, allow_upscale=True)
        rows, columns = grid
        return overview + rows * columns * tokens(height // rows, width // columns)

    return lambda sizes: [count(size) for size in sizes]


def lfm2(**settings: Any) -> Count:
    pictures: Any = hf.Lfm2VlImageProcessor(**settings)
    factor = pictures.encoder_patch_size * pictures.downsample_factor
    common = {"downsample_factor": pictures.downsample_factor, "encoder_patch_size": pictures.encoder_patch_size}
    common["max_image_tokens"] = pictures.max_image_tokens

    def count(size: tuple[int, int]) -> int:
        width, height = pictures.smart_resize(*size, min_image_tokens=pictures.min_image_tokens, **common)
        overview = (height // factor) * (width // factor)
        is_large = pictures._is_image_too_large(*size, max_pixels_tolerance=pictures.max_pixels_tolerance, **common)
        if not (is_large and pictures.do_image_splitting):
            return overview
        side = pictures.tile_size
        *_, tiles = pictures._get_grid_layout(*size, pictures.min_tiles, pictures.max_tiles, side)
        return overview + tiles * (side // factor) ** 2

    return lambda sizes: [count(size) for size in sizes]


def glm(**settings: Any) -> Count:
    return _by(hf.Glm4vProcessor, hf.Glm4vImageProcessorPil(**settings))


LLAVA_TILES = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
GRANITE_TILES = [
    [384 * rows, 384 * columns] for rows in range(1, 11) for columns in range(1, 11) if 1 < rows * columns <= 10
]
COUNTS: dict[str, Callable[[], Count]] = {
    "llava-hf/llava-1.5": lambda: lambda sizes: [576],
    "llava-hf/llava-v1.6": lambda: _llava_next(336, LLAVA_TILES, "default", 1),
    "llava-hf/llava-onevision": _onevision,
    "Qwen/Qwen2.5-VL": lambda: _by(hf.Qwen2_5_VLProcessor, _qwen_pictures(14, 56**2, 12_845_056)),
    "Qwen/Qwen3": lambda: _by(hf.Qwen3VLProcessor, _qwen_pictures(16, 256**2, 4096**2)),
    "OpenGVLab/InternVL3": _internvl,
    "HuggingFaceTB/SmolVLM2-2.2B": lambda: _smolvlm(1536, 384, 81),
    "HuggingFaceTB/SmolVLM2": lambda: _smolvlm(2048, 512, 64),
    "google/gemma-3": lambda: lambda sizes: [256],
    "google/gemma-4": lambda: _by(hf.Gemma4Processor, hf.Gemma4ImageProcessorPil()),
    "google/paligemma2": lambda: lambda sizes: [1024],
    "openbmb/MiniCPM-V-4.6": minicpm,
    "LiquidAI/LFM2.5-VL": lfm2,
    "ibm-granite/granite-vision-3.3": lambda: _llava_next(384, GRANITE_TILES, "full", 0),
    "zai-org/GLM-4.6V-Flash": glm,
    "LanguageBind/Video-LLaVA": lambda: lambda sizes: [256],
}
"""By how a hub id begins."""
SHARES = {"half of the layers": 0.5, "three quarters of the layers": 0.75}
"""Where withdrawal starts, by the source of that layer."""


def visual_tokens(name: str) -> list[int]:
    """The fewest and the most of a picture."""
    counted = next(make for begin, make in COUNTS.items() if name.startswith(begin))()(SIZES)
    return [min(counted), max(counted)]


def clip_tokens(name: str) -> int | None:
    """The most visual tokens of a clip, of pictures whose sizes are the same; None where it takes none."""
    model_type = CONFIGS[name]().model_type
    if model_type == "video_llava":
        return APART_FRAMES * 257
    if model_type not in FRAMES_IN_PAIRS:
        return None
    is_later = name.startswith("Qwen/Qwen3")
    pictures = _qwen_pictures(16, 256**2, 4096**2) if is_later else _qwen_pictures(14, 56**2, 12_845_056)
    settings = {"size": {"shortest_edge": 64**2, "longest_edge": 25_165_824}} if is_later else {}
    clips = ClipProcessor(model_type, pictures, settings)
    factor = pictures.patch_size * pictures.merge_size
    frames = [clips._size(Image.new("1", size), MOST_FRAMES) for size in SIZES]
    return max(MOST_FRAMES // 2 * (width // factor) * (height // factor) for width, height in frames)


def of_weights(name: str) -> dict[str, int]:
    config = CONFIGS[name]()
    architecture = describe(config)
    return {
        "parameters": architecture.parameters,
        "memory_4bit": round(architecture.weight_bytes("4bit", torch.bfloat16), -6),
        "download": architecture.parameters * stored_dtype(name).itemsize,
        "layers": architecture.layers,
    }


def of_pictures(name: str) -> dict[str, Any]:
    """Raises ImportError where a package is missing."""
    found: dict[str, Any] = {"visual_tokens": visual_tokens(name)}
    clip = clip_tokens(name)
    return found if clip is None else {**found, "clip_tokens": clip}


def main() -> int:
    entries = json.loads(FILE.read_text(encoding="utf-8"))
    written = []
    for entry in entries:
        try:
            entry |= of_weights(entry["name"]) | of_pictures(entry["name"])
        except ImportError as error:
            print(f"{entry['name']} stays as it is: {error}", file=sys.stderr)
        if share := SHARES.get(entry["layer_source"]):
            entry["layer"] = round(share * entry["layers"])
        written.append(entry)
    lines = ",\n".join(f"  {json.dumps(entry, ensure_ascii=False)}" for entry in written)
    FILE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
