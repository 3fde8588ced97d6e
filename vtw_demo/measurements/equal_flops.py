"""Other methods at the cost of withdrawal: their parameters, so that a prefill takes as many FLOPs."""

from bisect import bisect_left
from typing import Literal

from transformers import PreTrainedConfig

from vtw_demo.errors import UserError
from vtw_demo.formats import percent
from vtw_demo.measurements.decoder_shape import decoder_shape
from vtw_demo.measurements.flops import Schedule, prefill_flops
from vtw_demo.withdrawal.fastv import FASTV_LAYER
from vtw_demo.withdrawal.prune import KINDS, read_recipe, write_recipe

Rival = Literal["fastv", "pyramid_drop", "random_tokens", "uniform_grid"]
"""A word of recipes."""
TITLES: dict[Rival, str] = {
    "fastv": "FastV",
    "pyramid_drop": "PyramidDrop",
    "random_tokens": "random tokens",
    "uniform_grid": "uniform grid",
}
RIVALS: tuple[Rival, ...] = tuple(TITLES)
_OF_WORDS = {"withdraw": "withdrawal"} | {str(rival): title for rival, title in TITLES.items()}


def equal_schedule(
    rival: Rival, config: PreTrainedConfig, prompt_tokens: int, visual_tokens: int, layer: int
) -> dict[int, float]:
    """What `rival` has to keep at which layers for a prefill of as many FLOPs as with withdrawal at `layer` (K), or as
    near as it comes; arguments as of `prefill_flops`.

    - `fastv` drops before layer 2, as in its paper; `uniform_grid` before layer 0.
    - `pyramid_drop` keeps a share s, s², s³ from a quarter, half and three quarters of the layers on, as in its paper,
      where s is a half.
    - `random_tokens` at K itself takes as many tokens out as withdrawal.

    Raises ValueError where the rival can't save as much, and for decoders whose costs aren't known.
    """
    layers = len(decoder_shape(config).layers)

    def schedule(number: int) -> dict[int, float]:
        """With a share of so many visual tokens."""
        share = number / max(visual_tokens, 1)
        if rival == "random_tokens":
            return {min(layer, layers - 1): float(layer == layers)}
        if rival == "pyramid_drop":
            return {max(1, layers * stage // 4): share**stage for stage in (1, 2, 3)}
        return {FASTV_LAYER if rival == "fastv" else 0: share}

    def cost(at: int | Schedule) -> int:
        return prefill_flops(config, prompt_tokens, visual_tokens, at)

    allowed = cost(layer)
    if cost(schedule(0)) > allowed:
        raise UserError(
            f"{rival} drops its first tokens before layer {min(schedule(0))}, and can't save as much as withdrawal "
            f"at K = {layer}."
        )
    above = bisect_left(range(visual_tokens), allowed, key=lambda number: cost(schedule(number)))
    nearest = min((max(above - 1, 0), above), key=lambda number: abs(cost(schedule(number)) - allowed))
    return schedule(nearest)


def equal_recipe(rival: Rival, config: PreTrainedConfig, prompt_tokens: int, visual_tokens: int, layer: int) -> str:
    """The same as a recipe of `prune`."""
    schedule = equal_schedule(rival, config, prompt_tokens, visual_tokens, layer)
    return write_recipe([KINDS[rival](at, keep) for at, keep in schedule.items()])


def recipe_title(recipe: str) -> str:
    """The methods of a recipe of `prune`."""
    words = dict.fromkeys(step.word for step in read_recipe(recipe))
    return ", ".join(_OF_WORDS[word] for word in words)


def recipe_in_words(recipe: str) -> str:
    """A recipe of `prune`, or the rival that one is to be made for."""
    if recipe in _OF_WORDS:
        return _OF_WORDS[recipe]
    said: list[str] = []
    for step in read_recipe(recipe):
        keep = step.keep if isinstance(step.keep, float) else 0.0
        of = f"{percent(keep)} of the visual tokens left"
        if step.word == "random_tokens":
            of = f"{percent(1 - keep)} as many tokens gone as there are visual ones"
        said.append(f"{_OF_WORDS[step.word]}, {of} from layer {step.layer} on")
    return "; ".join(said)


def schedule_of(recipe: str) -> dict[int, float]:
    """What a recipe of `prune` keeps, for `prefill_flops` and `kv_cache_bytes_by_layer`."""
    return {step.layer: step.keep for step in read_recipe(recipe) if isinstance(step.keep, float)}
