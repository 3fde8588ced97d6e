"""How much of a picture a model is shown: what low, usual and high set of its image processor's own limits."""

import math
from typing import Any, Literal, get_args

from vtw_demo.errors import UserError
from vtw_demo.files import data_beside

Detail = Literal["low", "usual", "high"]
DETAILS: tuple[Detail, ...] = get_args(Detail)
FEW_TOKENS = 100
"""With fewer visual tokens than this there is hardly anything to withdraw."""

_SETTINGS = data_beside(__file__, "picture_detail.toml")


def read_detail(value: Any) -> Detail:
    """Raises UserError for what is no picture detail."""
    if value not in DETAILS:
        raise UserError(f"Unknown picture detail {value!r}: choose {', '.join(DETAILS[:-1])} or {DETAILS[-1]}.")
    return value


def detail_settings(image_processor: Any, detail: Detail, is_on_cpu: bool) -> dict[str, Any]:
    """What a detail sets of an image processor, as its call takes it, where that isn't its own setting already; and
    `picture`, the longest edge in pixels to which a picture is shrunk before."""
    listed = _SETTINGS.get(type(image_processor).__name__.removesuffix("Pil"), {})
    chosen = listed.get("cpu" if detail == "usual" and is_on_cpu else detail, {})
    own = {name: getattr(image_processor, name, math.inf) for name in chosen}
    settings = {name: _bounded(own[name], value, detail) for name, value in chosen.items()}
    return {name: value for name, value in settings.items() if value != _plain(own[name])}


def _bounded(own: Any, listed: Any, detail: Detail) -> Any:
    if isinstance(listed, dict):
        held = _plain(own)
        return held | {name: _bounded(held[name], value, detail) for name, value in listed.items()}
    return max(own, listed) if detail == "high" else min(own, listed)


def _plain(setting: Any) -> Any:
    """Sizes are a class of transformers', with a None for what they don't say."""
    is_number = isinstance(setting, int | float)
    return setting if is_number else {name: value for name, value in dict(setting).items() if value is not None}
