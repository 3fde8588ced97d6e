"""Each picture through the vision encoder once, however many questions are asked about it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


@contextmanager
def shared_encoding(model: PreTrainedModel) -> Iterator[None]:
    """Inside a `with` block `model` remembers what its vision encoder and projector made of each picture.

    Where a picture is one row of `pixel_values` and what is made of it is one row or one item of the result (LLaVA),
    it is looked up by its pixels. Other families encode as ever. What is remembered is gone after the block.
    """
    inner: Any = getattr(model, "model", model)
    encode = getattr(inner, "get_image_features", None)
    if encode is None:
        yield
        return
    remembered: dict[tuple[bytes, str], torch.Tensor] = {}

    @wraps(encode)  # generate looks at its signature to know what to hand over
    def looked_up(pixel_values: Any = None, *further: Any, **options: Any) -> Any:
        describes = not further and not any(isinstance(value, torch.Tensor) for value in options.values())
        if not describes or not isinstance(pixel_values, torch.Tensor) or pixel_values.ndim != 4:
            return encode(pixel_values, *further, **options)
        of_rows = [(_digest(row), repr(sorted(options.items()))) for row in pixel_values]
        new = {key: row for row, key in enumerate(of_rows) if key not in remembered}
        if new:
            made = encode(pixel_values[list(new.values())], **options)
            features = getattr(made, "pooler_output", None)
            # A class of its own holds more than these features.
            if type(made) is not BaseModelOutputWithPooling or features is None or len(features) != len(new):
                return made if len(new) == len(of_rows) else encode(pixel_values, **options)
            remembered.update(zip(new, features, strict=True))
            kinds.add(type(features))
        found: Any = [remembered[key] for key in of_rows]
        # Some models give a list, with a tensor for each picture.
        return BaseModelOutputWithPooling(pooler_output=torch.stack(found) if torch.Tensor in kinds else found)

    kinds = set[type]()
    inner.get_image_features = looked_up
    try:
        yield
    finally:
        del inner.get_image_features


def _digest(pixels: torch.Tensor) -> bytes:
    return hashlib.sha256(pixels.contiguous().view(torch.uint8).cpu().numpy().tobytes()).digest()
