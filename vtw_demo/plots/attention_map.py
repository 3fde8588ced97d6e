"""Where it looks: the picture with its patches shaded by attention, layer by layer, as HTML that needs no network."""

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from plotly.colors import sample_colorscale, unlabel_rgb

from vtw_demo.comparison.compare import RunName
from vtw_demo.formats import run_title
from vtw_demo.measurements.attention import AttentionMap
from vtw_demo.measurements.equal_flops import recipe_in_words
from vtw_demo.measurements.patch_grid import PatchGeometry
from vtw_demo.measurements.sinks import MASSIVE
from vtw_demo.plots.attention import why_gaps, withdrawal_layer_of
from vtw_demo.plots.images import image_uri, thumbnail
from vtw_demo.plots.tab import ATTENTION, CONTRIBUTION, Cell, Quantity, Table
from vtw_demo.plots.templates import TEMPLATES, reading

ATTENTION_MAP_SCRIPT = Path(__file__).with_name("attention_map.js").read_text(encoding="utf-8")

LONGEST_SIDE = 336  # pixels of what is embedded; patches of the usual grids are whole numbers of them
# Dark to bright, which colour-blind people can tell apart too; what gets no attention stays clear.
_COLOURS = np.array(
    [unlabel_rgb(colour) for colour in sample_colorscale("inferno", np.linspace(0.25, 1, 256))], dtype=np.uint8
)
_OPACITY = (235 * np.linspace(0, 1, 256) ** 0.6).round().astype(np.uint8)
_STOPS = (
    f"rgb({red} {green} {blue} / {opacity / 255:.2f})"
    for (red, green, blue), opacity in zip(_COLOURS[::51].tolist(), _OPACITY[::51].tolist(), strict=True)
)
_GRADIENT = f"linear-gradient(90deg,{','.join(_STOPS)})"


def attention_map_html(
    geometry: PatchGeometry,
    maps: Mapping[RunName, AttentionMap],
    picture: Image.Image,
    quantity: Quantity = ATTENTION,
) -> str:
    """The runs side by side, a slider that plays through the layers, and all layers on one sheet; all images are
    embedded. It opens at the last layer before the withdrawal, and in each layer all runs have the same scale. Patches
    that are sinks as they enter a layer are outlined."""
    runs, layer = _shown(maps, quantity), withdrawal_layer_of(maps)
    full = runs["full"]
    shades = {run: _shades(geometry, attention_map) for run, attention_map in runs.items()}
    peaks = _peaks(*shades.values())
    images = {
        run: [image_uri(_indexed(shade, peaks[at]), "png", optimize=True) for at, shade in enumerate(of_run)]
        for run, of_run in shades.items()
    }
    return TEMPLATES.get_template("attention_map.html").render(
        runs=runs,
        titles={run: run_title(run, layer, one.recipe and recipe_in_words(one.recipe)) for run, one in runs.items()},
        images=images,
        picture=image_uri(thumbnail(picture, LONGEST_SIDE), "jpeg", quality=88),
        size=geometry.sizes[0],
        peaks=peaks,
        k=layer,
        opened=max(np.flatnonzero(~np.isnan(full.weights[:layer, 0])), default=layer - 1),
        # The share of attention that each layer's brightest colour stands for.
        on_a_patch=[peak * _patch_cells(geometry) for peak in peaks],
        is_crisp=not _overlap(geometry),
        gradient=_GRADIENT,
        sinks=[_outlines(geometry, tokens) for tokens in full.sinks.visual] if full.sinks else [""] * full.layers,
        what="attention" if quantity == ATTENTION else "attention times value norm",
    )


def attention_map_reading(maps: Mapping[RunName, AttentionMap], quantity: Quantity = ATTENTION) -> str:
    """Which layer looks at the picture most, and whether it looks at a few patches, before and after K; which patches
    are sinks."""
    shown, layer = _shown(maps, quantity), withdrawal_layer_of(maps)
    full, recipe = shown["full"], maps["beside"].recipe if "beside" in maps else None
    shares, brightest = np.nan_to_num(full.weights).sum(1), _brightest_tenth(full.weights[:layer])
    attending = int((~np.isnan(full.weights[layer:, 0])).sum())
    told = {"layer": layer, "layers": full.layers, "shares": shares, "brightest": brightest, "attending": attending}
    told |= {"sinks": full.sinks, "massive": MASSIVE, "is_weighted": quantity == CONTRIBUTION}
    means = {
        run: float(np.nansum(one.weights) / max(1, full.layers - full.layers_without_attention))
        for run, one in shown.items()
    }
    told |= {"said_beside": recipe and recipe_in_words(recipe), "beside": means.get("beside"), "mean": means["full"]}
    return reading("attention_map", **told, gaps=why_gaps(full))


def attention_map_table(geometry: PatchGeometry, maps: Mapping[RunName, AttentionMap]) -> Table:
    """Both quantities, whichever is shown."""
    rows: list[tuple[Cell, ...]] = []
    full = maps["full"]
    sinks = full.sinks.visual if full.sinks else ((),) * full.layers
    measured = (*(one.weights for one in maps.values()), *(one.contribution for one in maps.values()))
    for layer, shares in enumerate(zip(*(one.tolist() for one in measured), strict=True)):
        for token, (patch, *of_token) in enumerate(zip(geometry.patches, *shares, strict=True)):
            box = patch.box or (None,) * 4
            percents = (None if math.isnan(share) else 100 * share for share in of_token)
            rows.append((layer, token, patch.picture, *box, *percents, token in sinks[layer]))
    box_columns = ("left", "top", "right", "bottom")
    percent_columns = (f"{run}{of} (%)" for of in ("", ", × value norm") for run in maps)
    columns = ("layer", "visual token", "picture", *box_columns, *percent_columns, "sink")
    return Table(columns, tuple(rows))


def attention_map_png(
    geometry: PatchGeometry,
    maps: Mapping[RunName, AttentionMap],
    picture: Image.Image,
    quantity: Quantity = ATTENTION,
) -> bytes:
    """All layers on one sheet, as a PNG file: a column a layer, the full run above the others."""
    runs = _shown(maps, quantity)
    # Darker than it is, so that bright colours stand out.
    shown = ImageOps.grayscale(thumbnail(picture, LONGEST_SIDE // 2)).point(lambda value: 0.72 * value).convert("RGBA")
    gap, title, across = 6, 14, 8
    width, height, layers = shown.width + gap, len(runs) * (shown.height + gap) + title, runs["full"].layers
    rows = -(-layers // across)
    sheet = Image.new("RGB", (min(across, layers) * width + gap, rows * height + gap), "white")
    draw = ImageDraw.Draw(sheet)
    of_runs = [_shades(geometry, attention_map) for attention_map in runs.values()]
    for at, peak in enumerate(_peaks(*of_runs)):
        left, top = gap + at % across * width, gap + at // across * height
        draw.text((left, top), f"layer {at}", fill="black")
        for row, shades in enumerate(of_runs):
            if at < len(shades):
                overlay = _indexed(shades[at], peak).convert("RGBA").resize(shown.size)
                tile = Image.alpha_composite(shown, overlay)
            else:
                tile = Image.blend(shown, Image.new("RGBA", shown.size, "white"), 0.7)
            sheet.paste(tile.convert("RGB"), (left, top + title + row * (shown.height + gap)))
    content = io.BytesIO()
    sheet.save(content, "PNG")
    return content.getvalue()


def _shown(maps: Mapping[RunName, AttentionMap], quantity: Quantity) -> Mapping[RunName, AttentionMap]:
    """The maps with the chosen quantity as their weights."""
    is_whole = quantity == ATTENTION
    return maps if is_whole else {run: replace(one, weights=one.contribution) for run, one in maps.items()}


def _outlines(geometry: PatchGeometry, tokens: Sequence[int]) -> str:
    """An SVG path around the patches of these visual tokens, on a picture of 100 by 100; empty where there are none."""
    boxes = (geometry.patches[token].box for token in tokens)
    corners = ([100 * side for side in box] for box in boxes if box is not None)
    return "".join(
        f"M{left:.2f} {top:.2f}H{right:.2f}V{bottom:.2f}H{left:.2f}Z" for left, top, right, bottom in corners
    )


def _brightest_tenth(weights: np.ndarray) -> float:
    """The share of all weights, (layers, visual tokens), that each layer's brightest tenth of the tokens has."""
    tenth = -(-weights.shape[1] // 10)
    weights = np.nan_to_num(weights)
    return float(np.sort(weights, axis=1)[:, -tenth:].sum() / max(float(weights.sum()), 1e-12))


def _shades(geometry: PatchGeometry, attention_map: AttentionMap) -> list[np.ndarray]:
    """The attention in each layer that has visual tokens, a cell for each pixel of the overlay."""
    held = np.nan_to_num(attention_map.weights[: attention_map.withdrawal_layer])
    return [geometry.shade(weights, LONGEST_SIDE)[0] for weights in held]


def _peaks(*runs: list[np.ndarray]) -> list[float]:
    """Each layer's brightest cell in any of the runs, of which some have fewer layers."""
    return [max(float(shade.max()) for shade in of_layer if shade is not None) for of_layer in zip_longest(*runs)]


def _areas(geometry: PatchGeometry) -> list[float]:
    """The share of the picture that each of its patches covers; 0 for visual tokens without a place."""
    return [
        0.0 if patch.box is None else (patch.box[2] - patch.box[0]) * (patch.box[3] - patch.box[1])
        for patch in geometry.patches
    ]


def _patch_cells(geometry: PatchGeometry) -> float:
    """How many of the overlay's pixels a patch has: the median, as edges may cut some."""
    areas = [area for area in _areas(geometry) if area]
    width, height = geometry.sizes[0]
    return statistics.median(areas) * LONGEST_SIDE**2 * min(width, height) / max(width, height) if areas else 0.0


def _overlap(geometry: PatchGeometry) -> bool:
    """Whether patches lie on each other, as those of an overview and its tiles do, so that they are no plain grid."""
    # Spread over its cells, a patch as heavy as it is large counts 1 where it lies alone.
    cover = geometry.shade(_areas(geometry), LONGEST_SIDE)[0]
    return bool(cover.max() * cover.size > 1.5)


def _indexed(shade: np.ndarray, peak: float) -> Image.Image:
    """A shaded layer in colours, the last one for `peak`, clear where there is no attention."""
    levels = (255 * shade / (peak or 1)).round().astype(np.uint8)
    image = Image.frombytes("P", (shade.shape[1], shade.shape[0]), levels.tobytes())
    image.putpalette(_COLOURS.tobytes())
    image.info["transparency"] = _OPACITY.tobytes()
    return image
