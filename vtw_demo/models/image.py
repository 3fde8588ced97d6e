"""A picture from a file, an array or Pillow, or one sentence that says why there is none."""

import io
import os
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, features

from vtw_demo.errors import UserError
from vtw_demo.files import data_beside

# No format that starts another program, and none with scripts in it.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
# Pictures in the container of MP4: AVIF and HEIF.
PICTURE_BRANDS = (b"avif", b"avis", *b"heic heix heim heis hevc hevx hevm hevs heif mif1 mif2 msf1".split())
MAXIMUM_PIXELS = 50_000_000
# Beyond it nothing is left to see once the picture is resized for a model, and some processors would need gigabytes.
MAXIMUM_ASPECT_RATIO = 100
LONGEST_NAME = 200
_SAYS: dict[str, Any] = data_beside(__file__, "image.toml")
_TOO_LARGE = f"The picture is too large: it may have up to {MAXIMUM_PIXELS // 1_000_000} million pixels."
_PNG, _TIFF = b"\x89PNG\r\n\x1a\n", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """The file of a picture or clip. Raises FileNotFoundError where there is none, UserError for what is no file."""
    written = str(path)
    name = repr(written if len(written) <= LONGEST_NAME else f"{written[:LONGEST_NAME]}…")
    if os.path.exists(path) and not os.path.isfile(path):  # to open a pipe would wait for who writes
        kind = "folder" if os.path.isdir(path) else "pipe, a socket or a device"
        raise UserError(f"{name} is a {kind}, and no picture: choose a picture's file.")
    try:
        return Path(path).open("rb")
    except FileNotFoundError as error:
        if os.path.islink(path):
            raise UserError(f"{name} is a link to {os.readlink(path)!r}, which isn't there.") from error
        advice = " Addresses are not read: download it first." if "://" in name else ""
        raise FileNotFoundError(f"There is no picture {name}.{advice}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{name} can't be read: {getattr(error, 'strerror', error)}.") from error


def open_picture(source: str | os.PathLike[str] | bytes | BinaryIO) -> Image.Image:
    return read_picture(source)[0]


def read_picture(source: str | os.PathLike[str] | bytes | BinaryIO) -> tuple[Image.Image, str]:
    """The picture in a file, of an animated one the first frame, as `shown_picture` gives it; and a sentence about what
    of the file is not shown, "" where all of it is.

    `source`: a path, a file open in binary mode, or its bytes. Raises what `open_file` does, and UserError.
    """
    if not isinstance(source, bytes):
        with open_file(source) if isinstance(source, str | os.PathLike) else nullcontext(source) as file:
            source = file.read()
    if not source:
        raise UserError("The picture's file is empty: choose another one.")
    try:
        picture = _loaded(source)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(_TOO_LARGE) from error
    except Exception as error:  # Pillow's readers raise a dozen kinds for files that are cut short or broken
        if source.startswith(_PNG) and len(bare := _without_notes(source)) < len(source):
            return read_picture(bare)
        raise UserError(_reason(source, error)) from error
    try:
        has_more = getattr(picture, "is_animated", False)
    except Exception:  # What comes after the first frame is broken, and isn't needed.
        has_more = False
    return shown_picture(picture), _SAYS["first of many"].get(picture.format, "") if has_more else ""


def shown_picture(given: Any) -> Image.Image:
    """A picture as a model is shown it: upright, in RGB of 8 bits, on white where it is transparent.

    `given` is one of Pillow's, what `read_picture` takes, or an array of NumPy or torch, (height, width), or with 1, 3
    (RGB) or 4 (RGBA) channels last or first, of uint8, uint16, bool or floats from 0 to 1. Raises UserError, and what
    `open_file` does.
    """
    if isinstance(given, str | os.PathLike | bytes) or hasattr(given, "read"):
        return open_picture(given)
    picture = given if isinstance(given, Image.Image) else _from_array(given)
    _check_size(picture)
    try:
        picture.load()
    except Exception as error:
        raise UserError(_SAYS["damaged"]) from error
    if isinstance(picture, TiffImagePlugin.TiffImageFile) and _is_misread(picture):
        raise UserError(_SAYS["bad TIFF"])
    try:
        picture = ImageOps.exif_transpose(picture)
    except Exception:  # Its notes about itself are broken: they don't matter that much.
        picture = picture.copy()
    try:
        picture = _in_eight_bits(picture)
        if not picture.has_transparency_data:
            return picture.convert("RGB")
        background = Image.new("RGBA", picture.size, "white")
        background.alpha_composite(picture.convert("RGBA"))
        return background.convert("RGB")
    except ValueError as error:
        raise UserError(f"The picture's colours ({picture.mode}) can't be read: save it in RGB.") from error


def shown_by_browsers(path: str | os.PathLike[str]) -> bool:
    """Whether browsers may show what is in a file: no HEIC and no TIFF."""
    with open_file(path) as file:
        head = file.read(12)
    return not head.startswith(_TIFF) and not _is_heif(head)


def _is_heif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in PICTURE_BRANDS and head[8:11] != b"avi"


def _loaded(content: bytes) -> Image.Image:
    Image.init()
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    picture = Image.open(io.BytesIO(content), formats=[name for name in FORMATS if name in Image.OPEN])
    _check_size(picture)
    picture.load()
    return picture


def _reason(content: bytes, error: Exception) -> str:
    """Why a file that begins so can't be read."""
    if _is_heif(content) and "HEIF" not in Image.OPEN:
        return "HEIC pictures are read with the package pillow-heif, which isn't installed: pip install pillow-heif."
    if content[4:11] == b"ftypavi" and not features.check("avif"):
        return "This build of Pillow reads no AVIF: pip install --force-reinstall pillow brings one that does."
    if content.startswith(_TIFF):
        return _SAYS["bad TIFF"]
    if isinstance(error, UnidentifiedImageError) and not content.startswith(_PNG) and content[4:8] != b"ftyp":
        return f"This file is not a picture that can be read: use {', '.join(FORMATS)}."
    return _SAYS["damaged"]


def _without_notes(content: bytes) -> bytes:
    """A PNG without profile and texts, of which Pillow unpacks a megabyte at most, and else gives up."""
    kept, start = [content[:8]], 8
    while start < len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        if content[start + 4 : start + 8] not in (b"iCCP", b"tEXt", b"zTXt", b"iTXt"):
            kept.append(content[start:end])
        start = end
    return b"".join(kept)


def _is_misread(picture: TiffImagePlugin.TiffImageFile) -> bool:
    kind, tags = TiffImagePlugin, picture.tag_v2
    bits, is_signed = max(tags.get(kind.BITSPERSAMPLE, (1,))), 2 in tags.get(kind.SAMPLEFORMAT, ())
    planes = tags.get(kind.PLANAR_CONFIGURATION) == 2 and len(picture.getbands()) > 1
    return (
        (bits > 8 and (planes or tags.get(kind.PHOTOMETRIC_INTERPRETATION) == 0))  # 0: the highest value is black
        or bits == 12
        or (bits == 8 and is_signed)
        or (picture.mode == "I" and not is_signed and bool(np.asarray(picture).min() < 0))
        or bool(tags.get(254, 0) & 1)  # a preview: what follows is the picture
    )


def _from_array(given: Any) -> Image.Image:
    if not hasattr(given, "__array__"):
        raise UserError(f"{_SAYS['taken']}; this is a {type(given).__name__}.")
    axes = (2, 0)
    if isinstance(given, torch.Tensor):
        given, axes = given.detach().cpu(), (0, 2)
        given = given.float() if given.is_floating_point() else given
    values = np.asarray(given)
    if values.ndim == 3:
        found = [axis for axis in axes if values.shape[axis] in (1, 3, 4)]
        values = np.moveaxis(values, found[0], 2) if found else values[None]
    kind = values.dtype.kind
    highest = 1 if kind in "bf" else 2 ** (8 * values.dtype.itemsize) - 1
    if values.ndim not in (2, 3) or kind not in "bfu" or highest > 65535:
        raise UserError(f"{_SAYS['taken']}; this has the shape {np.shape(given)} and values of {values.dtype}.")
    if kind == "f" and not (values.min(initial=0) >= 0 and values.max(initial=0) <= 1):
        raise UserError(f"{_SAYS['taken']}; these floats go from {values.min():g} to {values.max():g}.")
    pixels = np.rint(values * (255 / highest)).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def _check_size(picture: Image.Image) -> None:
    width, height = picture.size
    if not width or not height:
        raise UserError(f"The picture is empty: it has {width} × {height} pixels.")
    if width * height > MAXIMUM_PIXELS:
        raise UserError(_TOO_LARGE)
    if max(width, height) > MAXIMUM_ASPECT_RATIO * min(width, height):
        raise UserError(
            f"The picture is too elongated, {width} × {height} pixels: its longer side may be up to "
            f"{MAXIMUM_ASPECT_RATIO} times the shorter one."
        )


def _in_eight_bits(picture: Image.Image) -> Image.Image:
    """Grey values of 16 bits, 32 bits or floats are brought to 0 to 255: Pillow would cut them off at 255."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.nan_to_num(np.asarray(picture).astype(np.float32))
    lowest, highest = 0.0, 65535.0
    if picture.mode in ("I", "F"):
        # Nothing says where black and white are: the narrowest usual range, else that of the picture itself.
        lowest, highest = float(values.min()), float(values.max())
        usual = (1.0, 255.0, 65535.0) if picture.mode == "F" else (255.0, 65535.0)
        if lowest >= 0 and highest <= usual[-1]:
            lowest, highest = 0.0, next(limit for limit in usual if highest <= limit)
    share = (values - lowest) / max(highest - lowest, 1e-9)
    return Image.fromarray(np.rint(255 * share).astype(np.uint8))
