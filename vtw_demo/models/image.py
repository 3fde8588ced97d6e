"""A picture from a file, or one sentence that says why there is none."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vtw_demo.errors import UserError

# Those that Pillow reads itself: no format that starts another program, and none with scripts in it.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAXIMUM_PIXELS = 50_000_000
# Beyond it nothing is left to see once the picture is resized for a model, and some processors would need gigabytes.
MAXIMUM_ASPECT_RATIO = 100
_ANIMATED = "The picture is animated: the answers are about its first frame."
_PAGES = "The file has several pages: the answers are about its first."
# A JPEG's further frames are a phone's depth or exposure data.
_FIRST_OF_MANY = {"PNG": _ANIMATED, "WEBP": _ANIMATED, "GIF": _ANIMATED, "TIFF": _PAGES}
_DAMAGED = "The picture's file is damaged or cut short: choose another one."
_TOO_LARGE = f"The picture is too large: it may have up to {MAXIMUM_PIXELS // 1_000_000} million pixels."


def open_picture(file: str | Path | BytesIO) -> Image.Image:
    """The picture of `read_picture`."""
    return read_picture(file)[0]


def read_picture(file: str | Path | BytesIO) -> tuple[Image.Image, str]:
    """The picture in a file, or in its content, as `shown_picture` gives it, of an animated one the first frame; and a
    sentence about what of the file is not shown, "" where all of it is."""
    if (len(file.getbuffer()) if isinstance(file, BytesIO) else Path(file).stat().st_size) == 0:
        raise UserError("The picture's file is empty: choose another one.")
    try:
        picture = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise UserError(_TOO_LARGE) from error
    except UnidentifiedImageError as error:
        raise UserError(f"This file is not a picture that can be read: use {', '.join(FORMATS)}.") from error
    except Exception as error:  # Pillow's readers raise a dozen kinds for files that are cut short or broken
        raise UserError(_DAMAGED) from error
    with picture:
        _check_size(picture)
        try:
            picture.load()
        except Exception as error:
            raise UserError(_DAMAGED) from error
        try:
            has_more = getattr(picture, "is_animated", False)
        except Exception:  # What comes after the first frame is broken, and isn't needed.
            has_more = False
        return shown_picture(picture), _FIRST_OF_MANY.get(picture.format or "", "") if has_more else ""


def shown_picture(picture: Image.Image) -> Image.Image:
    """A picture as a model is shown it: upright, in RGB of 8 bits, on white where it is transparent."""
    _check_size(picture)
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
