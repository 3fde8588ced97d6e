"""Patch geometry: where each visual token of a prompt lies in its picture.

Which part of a picture each of the model's pixels shows is measured, not derived: the model's own processor is run on
pictures of the same sizes that hold their own coordinates, so that resizing, cropping, padding and tiling are those
of the processor. The order of the tokens is the model's own where it packs them itself, else row by row.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from vtw_demo.errors import UserError
from vtw_demo.formats import PlainData
from vtw_demo.models.loading import VisionLanguageModel
from vtw_demo.withdrawal.teacher_forcing import check_prompt

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge, in shares (0 to 1) of the picture's width and height."""

ROW_BY_ROW = (
    "llava", "vipllava", "video_llava", "internvl", "idefics3", "smolvlm", "gemma3", "paligemma", "mistral3",
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen3_5_moe",
)  # fmt: skip
"""Model types in which each view of a picture (the picture or a tile) gives its tokens row by row, view after view."""

PACKED = ("llava_next", "llava_onevision")
"""Model types that put the tiles together, cut the padding off and end each row with a token of its own."""

_DARK, _LIGHT = 25, 230  # far enough from 0 and 255 that what a resampling kernel overshoots isn't cut off
_ROUNDING = 0.02  # of a pixel, or of a box


@dataclass(frozen=True)
class VisualPatch:
    picture: int  # which of the prompt, from 0
    box: Box | None  # in it; None where the token ends a row (LLaVA-NeXT), is a class token, or shows padding only


@dataclass(frozen=True)
class PatchGeometry(PlainData):
    """Where the visual tokens of one prompt lie, in order."""

    sizes: tuple[tuple[int, int], ...]  # (width, height) of each picture in pixels
    patches: tuple[VisualPatch, ...]

    def shade(self, weights: Sequence[float] | np.ndarray, longest_side: int) -> tuple[np.ndarray, ...]:
        """Spread a weight of each visual token evenly over its box, adding up where boxes overlap: for each picture
        float64, shape (rows, columns), of its proportions, with `longest_side` cells."""
        given = np.asarray(weights, dtype=np.float64)
        assert given.shape == (len(self.patches),)
        shaded = []
        for picture, size in enumerate(self.sizes):
            columns, rows = (max(1, round(longest_side * side / max(size))) for side in size)
            tokens = [i for i, patch in enumerate(self.patches) if patch.picture == picture and patch.box is not None]
            boxes = np.array([self.patches[token].box for token in tokens]).reshape(-1, 4)
            across = _shares_of_cells(boxes[:, 0], boxes[:, 2], columns)
            down = _shares_of_cells(boxes[:, 1], boxes[:, 3], rows)
            shaded.append((down * given[tokens, None]).T @ across)
        return tuple(shaded)


def _shares_of_cells(start: np.ndarray, end: np.ndarray, cells: int) -> np.ndarray:
    """The share of each stretch from `start` to `end` in each of so many cells of 0 to 1: (stretches, cells)."""
    edges = np.arange(cells + 1) / cells
    covered = (np.minimum(end[:, None], edges[1:]) - np.maximum(start[:, None], edges[:-1])).clip(min=0)
    return covered / covered.sum(1, keepdims=True)


def find_patches(
    vlm: VisionLanguageModel, images: Sequence[Image.Image], inputs: Mapping[str, torch.Tensor]
) -> PatchGeometry:
    """Find where each visual token of one prompt lies in its picture: of `images`, the pictures of the prompt, and
    `inputs`, what the model's processor made of them.

    The processor runs on three pictures of each size; the model doesn't run. A box is right to about half a pixel of
    the picture, or of what the model sees of it, whichever is larger. It is where the token's own patch is: a vision
    encoder's attention mixes patches, and interpolation (LLaVA-OneVision) takes some from the patch beside it.

    Raises UserError where tokens have no place, or one that isn't known, and for inputs of other pictures.
    """
    check_prompt(inputs)
    if len(inputs["input_ids"]) != 1:
        raise UserError(f"Patches are found for one prompt at a time; these are {len(inputs['input_ids'])}.")
    config: Any = vlm.model.config
    if config.model_type not in (*ROW_BY_ROW, *PACKED):
        raise _unknown(vlm)
    if not images:
        raise UserError("There are no pictures: hand those of the prompt.")
    sizes = tuple(ImageOps.exif_transpose(image).size for image in images)
    views = _find_views(vlm, sizes, inputs)
    side = config.vision_config.patch_size
    find = _packed if config.model_type in PACKED else _row_by_row
    patches = find(vlm, views, inputs, side if isinstance(side, int) else side[0])
    if len(patches) != vlm.visual_tokens(dict(inputs)):
        raise _unknown(vlm)
    return PatchGeometry(sizes, tuple(patches))


def _unknown(vlm: VisionLanguageModel) -> UserError:
    return UserError(
        f"Where each visual token of {type(vlm.model).__name__} lies in its picture isn't known, so nothing can be "
        "drawn over it."
    )


@dataclass(frozen=True)
class _View:
    """Part of a picture as the vision encoder takes it, in pixels. Where all is padding, `picture` is -1."""

    picture: int
    width: int
    height: int
    across: tuple[float, float]  # the share of the picture's width at its left edge, and the step of a pixel, or NaN
    down: tuple[float, float]  # the same from its upper edge

    def boxes(self, side: int) -> np.ndarray:
        """Boxes of whole squares of `side` pixels, row by row, in shares of the picture or beyond it: (squares, 4)."""
        left, top = (
            start + step * side * np.arange(pixels // side + 1)
            for (start, step), pixels in ((self.across, self.width), (self.down, self.height))
        )
        grid = [(x[0], y[0], x[1], y[1]) for y in pairwise(top) for x in pairwise(left)]
        return np.array(grid).reshape(-1, 4)


def _find_views(
    vlm: VisionLanguageModel, sizes: Sequence[tuple[int, int]], inputs: Mapping[str, torch.Tensor]
) -> list[_View]:
    """The views of the pictures, in the order of the processor's output."""
    dark, light = (
        _pixels(vlm, [Image.new("RGB", size, (level,) * 3) for size in sizes], inputs) for level in (_DARK, _LIGHT)
    )
    traced = _pixels(vlm, [_trace(size, (i + 0.5) / len(sizes)) for i, size in enumerate(sizes)], inputs)
    # What a pixel of the picture differs by from dark to light, for each channel; padding differs by nothing.
    spans = [brighter - darker for darker, brighter in zip(dark, light, strict=True)]
    differing = np.concatenate([span.reshape(3, -1) for span in spans], axis=1)
    whole = [np.median(channel[channel > channel.max() / 2]) for channel in differing]
    views = []
    for span, darker, seen in zip(spans, dark, traced, strict=True):
        inside = (span / np.reshape(whole, (3, 1, 1)) > 1 - _ROUNDING).all(0)
        x, y, number = np.where(inside, (seen - darker) / np.where(inside, span, 1), np.nan)
        height, width = inside.shape
        if inside.any():
            picture = int(np.nanmean(number) * len(sizes))
            across = _fit(x[inside.sum(1).argmax()], sizes[picture][0])
            down = _fit(y[:, inside.sum(0).argmax()], sizes[picture][1])
        else:
            picture, across, down = -1, (math.nan, math.nan), (math.nan, math.nan)
        views.append(_View(picture, width, height, across, down))
    return views


def _trace(size: tuple[int, int], number: float) -> Image.Image:
    """A picture whose colours are its own coordinates: red is x, green is y, and blue a number from 0 to 1."""
    width, height = size
    colours = np.empty((height, width, 3), np.uint8)
    x, y = np.arange(0.5, width) / width, np.arange(0.5, height) / height
    for channel, shares in enumerate((x[None], y[:, None], np.full((1, 1), number))):
        colours[..., channel] = np.round(_DARK + (_LIGHT - _DARK) * shares)
    return Image.fromarray(colours)


def _fit(shares: np.ndarray, side: int) -> tuple[float, float]:
    """The share of a picture of `side` pixels at a view's edge, and the step of a pixel, from the shares at the centres
    of a line of pixels (NaN in the padding)."""
    places = np.flatnonzero(~np.isnan(shares))
    shares = shares[places]
    if len(places) == 1:
        return (-float(places[0]), 1.0) if side == 1 else (math.nan, math.nan)
    step, start = np.polyfit(places + 0.5, shares, 1)
    # Near the picture's edges a resampling kernel reaches beyond it, and the shares don't rise evenly.
    margin = 3 * max(1 / side, step)
    clear = (shares > margin) & (shares < 1 - margin)
    if clear.sum() >= 8:
        step, start = np.polyfit(places[clear] + 0.5, shares[clear], 1)
    elif shares[0] < 0.6 / side + step and shares[-1] > 1 - 0.6 / side - step:
        step = 1 / len(places)  # all of a picture of a few pixels
        start = -places[0] * step
    return float(start), float(step)


def _pixels(
    vlm: VisionLanguageModel, pictures: list[Image.Image], inputs: Mapping[str, torch.Tensor]
) -> list[np.ndarray]:
    """What the processor makes of pictures, view by view: (channels, height, width); it must be of `inputs`' kind."""
    content = [*[{"type": "image"}] * len(pictures), {"type": "text", "text": "?"}]
    prompt = vlm.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    # LLaVA-OneVision cuts pictures into tiles unless they are handed as several of one prompt.
    singly = len(inputs.get("batch_num_images", ())) > 1
    given = {"images": pictures if singly else [pictures], "text": [prompt], **vlm.images_kwargs}
    made = vlm.processor(**given, add_special_tokens=False, return_tensors="pt")
    name = next((name for name in made if name.startswith("pixel_values")), None)
    if name is None:
        raise _unknown(vlm)
    layout = [key for key in ("image_sizes", "image_grid_thw", "batch_num_images") if key in made]
    if (
        not {name, *layout} <= inputs.keys()
        or made[name].shape != inputs[name].shape
        or not all(torch.equal(made[key], inputs[key].cpu()) for key in layout)
    ):
        raise UserError("The inputs weren't made from these pictures: hand those that the processor was given.")
    pixels = made[name].float()
    if "image_grid_thw" in made:
        views = _unflattened(vlm.model.config.vision_config, pixels, made["image_grid_thw"].tolist())
    else:
        views = list(pixels.flatten(0, -4))
    if vlm.model.config.vision_config.model_type == "pixtral":
        # The pictures of a prompt are filled up to the same size.
        own = made["image_sizes"].tolist()
        views = [view[:, :height, :width] for view, (height, width) in zip(views, own, strict=True)]
    return [view.numpy() for view in views]


def _unflattened(vision: Any, patches: torch.Tensor, grids: list[list[int]]) -> list[torch.Tensor]:
    """Pictures from the Qwen families' rows of pixels, in which patches that become one token follow each other."""
    merge, side = vision.spatial_merge_size, vision.patch_size
    views = []
    for part, (_, rows, columns) in zip(patches.split([math.prod(grid) for grid in grids]), grids, strict=True):
        # A picture is a video of equal frames.
        parts = part.reshape(rows // merge, columns // merge, merge, merge, 3, -1, side, side)[..., 0, :, :]
        views.append(parts.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * side, columns * side))
    return views


def _row_by_row(
    vlm: VisionLanguageModel, views: Sequence[_View], inputs: Mapping[str, torch.Tensor], side: int
) -> list[VisualPatch]:
    if any(view.picture < 0 for view in views):
        raise _unknown(vlm)
    patches, tokens = sum(len(view.boxes(side)) for view in views), vlm.visual_tokens(dict(inputs))
    has_class_token = tokens == patches + len(views)
    # How many patches a token is merged from, across and down.
    merge = 1 if has_class_token else max(1, round(math.sqrt(patches / max(tokens, 1))))
    found = []
    for view in views:
        found += [VisualPatch(view.picture, None)] * has_class_token
        found += [VisualPatch(view.picture, _inside(box)) for box in view.boxes(side * merge)]
    return found


def _packed(
    vlm: VisionLanguageModel, views: Sequence[_View], inputs: Mapping[str, torch.Tensor], side: int
) -> list[VisualPatch]:
    """The boxes in the order in which the model itself packs the features of patches; the ends of rows are infinite."""
    inner, config = vlm.model.model, vlm.model.config
    image_sizes = inputs["image_sizes"].cpu()
    each = len(views) // len(image_sizes)
    boxes = torch.from_numpy(np.stack([view.boxes(side) for view in views])).unflatten(0, (-1, each))
    # With several pictures of one prompt, those of fewer tiles are filled up.
    counts = [
        image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size)
        for size in image_sizes
    ]
    features = [picture[:count] for picture, count in zip(boxes, counts, strict=True)]
    newline = torch.full((4,), math.inf, dtype=boxes.dtype)
    if config.model_type == "llava_onevision":
        packed, _ = inner.pack_image_features(features, image_sizes, newline, config.vision_aspect_ratio)
        uncut, _ = inner.pack_image_features(features, image_sizes, newline, f"anyres_max_{10**9}")
    else:
        packed, _ = inner.pack_image_features(
            features, image_sizes, config.vision_feature_select_strategy, image_newline=newline
        )
        uncut = packed
    return [
        VisualPatch(number, _inside(box))
        for number, parts in enumerate(zip(features, packed, uncut, strict=True))
        for box in _widened(*(part.numpy() for part in parts))
    ]


def _widened(views: np.ndarray, packed: np.ndarray, uncut: np.ndarray) -> np.ndarray:
    """Boxes of one picture's tokens where its patches were interpolated to fewer: as much larger as these are fewer."""
    if len(packed) == len(uncut):
        return packed
    overview = views.shape[1]
    rows, rows_uncut = (int(np.isinf(part).all(1).sum()) for part in (packed, uncut))
    columns, columns_uncut = (
        (len(part) - overview) / count - 1 for part, count in ((packed, rows), (uncut, rows_uncut))
    )
    start, end = packed[overview:, :2], packed[overview:, 2:]
    with np.errstate(invalid="ignore"):
        grown = (end - start) / 2 * (np.array([columns_uncut / columns, rows_uncut / rows]) - 1)
    return np.concatenate([packed[:overview], np.concatenate([start - grown, end + grown], axis=1)])


def _inside(box: Iterable[float]) -> Box | None:
    """The part of a box that is inside the picture; None if there is none."""
    left, top, right, bottom = edges = tuple(float(edge) for edge in box)
    if not all(map(math.isfinite, edges)):
        return None
    inside = max(left, 0.0), max(top, 0.0), min(right, 1.0), min(bottom, 1.0)
    width, height = inside[2] - inside[0], inside[3] - inside[1]
    return inside if width > _ROUNDING * (right - left) and height > _ROUNDING * (bottom - top) else None
