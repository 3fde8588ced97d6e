"""Several methods in one prefill, by a recipe; as UniPruneBench writes them."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from transformers import PreTrainedModel

from vtw_demo.errors import UserError
from vtw_demo.withdrawal.fastv import FastV
from vtw_demo.withdrawal.pyramid_drop import PyramidDrop
from vtw_demo.withdrawal.random_tokens import RandomTokens
from vtw_demo.withdrawal.steps import Pruning, Step, check_order, pruned
from vtw_demo.withdrawal.uniform_grid import UniformGrid
from vtw_demo.withdrawal.withdraw import Withdraw, withdraw

KINDS: dict[str, type[Step]] = {kind.word: kind for kind in (Withdraw, FastV, PyramidDrop, RandomTokens, UniformGrid)}


@contextmanager
def prune(model: PreTrainedModel, recipe: str, *, this_thread_only: bool = False) -> Iterator[None]:
    """Prune tokens of `model` in the steps of a recipe, inside a `with` block.

        with prune(model, "2:fastv:0.5;16:withdraw"):
            model.generate(**inputs)

    A step is `layer:method:keep`, and steps are parted by semicolons, in ascending order of their layers. `method` is
    `fastv`, `pyramid_drop`, `random_tokens`, `uniform_grid` or `withdraw`; `keep` is the share of the prompt's visual
    tokens, of all that it had, that is left after the step: `withdraw` has none, and leaves none.

    Raises what these methods raise, and ValueError for a recipe that can't be read, with the step in question.
    `this_thread_only` as in `withdraw`.
    """
    with pruned(model, read_recipe(recipe), this_thread_only):
        yield


def pruned_by(model: PreTrainedModel, by: int | str, answer_length: int = 0) -> AbstractContextManager[Pruning]:
    """`withdraw` at `by`, a layer or "auto", or `prune` by the recipe that it is, in passes of this thread only.
    `answer_length` as in `pruned`, for recipes."""
    if isinstance(by, str) and by != "auto":
        return pruned(model, read_recipe(by), True, answer_length)
    layer: Any = by
    return withdraw(model, layer, this_thread_only=True)


def read_recipe(recipe: str) -> list[Step]:
    """The steps of a recipe; UserError with the step that can't be read."""
    steps = []
    for part in recipe.split(";"):
        layer, _, method = part.strip().partition(":")
        word, *shares = method.split(":")
        said = f"{part.strip()!r} is no step of a recipe:"
        if word not in KINDS:
            raise UserError(
                f"{said} it must be layer:method:keep, where method is one of {', '.join(KINDS)}, "
                'as in "2:fastv:0.5;16:withdraw".'
            )
        if not layer.isdecimal():
            raise UserError(f'{said} its layer must be a number from 0 on, as in "2:fastv:0.5".')
        if len(shares) != (word != "withdraw"):
            right = f"{layer}:{word}" + (":0.5" if word != "withdraw" else "")
            raise UserError(f'{said} write {word} as "{right}".')
        try:
            steps.append(KINDS[word](int(layer), *map(float, shares)))
        except ValueError:
            raise UserError(f'{said} the share to keep must be a number from 0 to 1, as in "2:fastv:0.5".') from None
    check_order(steps)
    return steps


def write_recipe(steps: Sequence[Step]) -> str:
    """The recipe of steps that have one share for all rows."""
    return ";".join(
        f"{step.layer}:{step.word}" + ("" if step.word == "withdraw" else f":{step.keep:.6g}") for step in steps
    )
