"""What stands in a page itself, as data URIs, so that nothing is fetched."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image, ImageOps


def data_uri(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def image_uri(image: Image.Image, kind: str, **options: Any) -> str:
    """`kind`: "png" or "jpeg"; `options` are Pillow's."""
    content = io.BytesIO()
    image.save(content, kind, **options)
    return data_uri(content.getvalue(), f"image/{kind}")


def thumbnail(picture: Image.Image, longest_side: int) -> Image.Image:
    """Upright, in RGB, no side longer than `longest_side` pixels."""
    shown = ImageOps.exif_transpose(picture).convert("RGB")
    shown.thumbnail((longest_side, longest_side))
    return shown
