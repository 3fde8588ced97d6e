"""What a recipe must give, from the whole model: which tokens leave at each step, found by masking and by hand, and
what the model makes of the others."""

from typing import Any

import torch

from tests.oracles import keys_blocked
from tests.tiny_models import OPTIONS, TinyModel, oracle
from vtw_demo.withdrawal.prune import prune
from vtw_demo.withdrawal.segments import visual_token_mask


def left_by(tiny: TinyModel, inputs: dict[str, torch.Tensor], recipe: str) -> dict[int, torch.Tensor]:
    """From each step's layer on, which tokens have left: bool, shape (batch, prompt). Of all words but `random_tokens`,
    whose draw isn't to be foretold."""
    visual = visual_token_mask(tiny.model.config, inputs["input_ids"])
    left: dict[int, torch.Tensor] = {}
    gone = torch.zeros_like(visual)
    for step in recipe.split(";"):
        layer, word, *share = step.split(":")
        gone = gone.clone()
        if word in ("fastv", "pyramid_drop"):
            with torch.no_grad(), keys_blocked(tiny.model, left) as matrices:
                tiny.model(**inputs)
            attention = matrices[int(layer) - 1].mean(1)[:, -1]
        for row, is_visual in enumerate(visual):
            there = (is_visual & ~gone[row]).nonzero()[:, 0].tolist()
            kept = 0 if word == "withdraw" else int(float(share[0]) * int(is_visual.sum()) + 0.5)
            if word in ("fastv", "pyramid_drop"):
                ascending = sorted(there, key=attention[row].tolist().__getitem__)
                stay = ascending[len(ascending) - kept :]
            else:  # evenly spaced: the last of each part
                stay = [there[-(-(number + 1) * len(there) // kept) - 1] for number in range(kept)]
            gone[row, [position for position in there if position not in stay]] = True
        left[int(layer)] = gone
    return left


def check_recipe(tiny: TinyModel, inputs: dict[str, torch.Tensor], recipe: str, **options: Any) -> Any:
    """Generate by a recipe, and from the whole model in which nothing sees what has left; what has left comes, too."""
    left = left_by(tiny, inputs, recipe)
    with keys_blocked(tiny.model, left):
        expected = tiny.model.generate(**inputs, **OPTIONS | options)
    with prune(tiny.model, recipe):
        out = tiny.model.generate(**inputs, **OPTIONS | options)
    check_same(out, expected)
    return out, left


def check_same(out: Any, expected: Any) -> None:
    """Whether two generations are the same: tokens, and logits to rounding."""
    assert torch.equal(out.sequences, expected.sequences)
    logits, expected_logits = torch.stack(out.logits), torch.stack(expected.logits)
    allowed = expected_logits > torch.finfo(expected_logits.dtype).min / 2  # chameleon's own images aren't
    error = (logits - expected_logits)[allowed].abs().max()
    assert error < 1e-4 * expected_logits[allowed].std()


def check_left(tiny: TinyModel, inputs: dict[str, torch.Tensor], layer: int, left: torch.Tensor, context: Any) -> Any:
    """The same for one step whose tokens are known, in families that can't be masked too."""
    with oracle(tiny, layer, left):
        expected = tiny.model.generate(**inputs, **OPTIONS)
    with context:
        out = tiny.model.generate(**inputs, **OPTIONS)
    check_same(out, expected)
    return out
