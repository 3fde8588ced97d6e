"""A picture from a file, or one sentence that says why there is none."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

# Those that Pillow reads itself: no format that starts another program, and none with scripts in it.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAXIMUM_PIXELS = 50_000_000


def open_picture(path: str | Path) -> Image.Image:
    """The picture in a file, upright, in RGB, on white where it is transparent.

    Raises ValueError, in a sentence for people, for what is no picture, and OSError for a file that isn't there.
    """
    if Path(path).stat().st_size == 0:
        raise ValueError("The picture's file is empty: choose another one.")
    try:
        picture = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(_too_large()) from error
    except UnidentifiedImageError as error:
        raise ValueError(f"This file is not a picture that can be read: use {', '.join(FORMATS)}.") from error
    with picture:
        if picture.width * picture.height > MAXIMUM_PIXELS:
            raise ValueError(_too_large())
        try:
            return _in_rgb(ImageOps.exif_transpose(picture))
        except Exception as error:  # Pillow's decoders raise a dozen kinds for files that are cut short or broken
            raise ValueError("The picture's file is damaged or cut short: choose another one.") from error


def _too_large() -> str:
    return f"The picture is too large: it may have up to {MAXIMUM_PIXELS // 1_000_000} million pixels."


def _in_rgb(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    shown = Image.new("RGBA", picture.size, "white")
    shown.alpha_composite(picture.convert("RGBA"))
    return shown.convert("RGB")
