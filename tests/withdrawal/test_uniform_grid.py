"""Every n-th visual token stays, and the others have never been there."""

from itertools import pairwise

import pytest
import torch

from tests.families import FAMILIES
from tests.recipes import check_left, check_same, left_by
from tests.tiny_models import OPTIONS, PROMPTS, TinyModel, build, prompts_of
from vtw_demo import uniform_grid
from vtw_demo.errors import UserError
from vtw_demo.withdrawal.baselines import blind


@pytest.fixture(scope="module")
def llava() -> TinyModel:
    return build("llava")


@pytest.mark.parametrize("name", FAMILIES)
def test_it_equals_a_model_that_never_saw_the_others(name):
    tiny = build(name)
    for kind in set(prompts_of(name)) & {"several images", "ragged batch"}:
        if kind == "ragged batch" and not tiny.family.masks:
            continue  # the oracle would need a cache
        inputs = tiny.prompt(*PROMPTS[kind])
        left = left_by(tiny, inputs, "0:uniform_grid:0.5")[0]
        check_left(tiny, inputs, 0, left, uniform_grid(tiny.model, 0.5))


@pytest.mark.parametrize(
    ("keep", "stay"), [(0.25, [3, 7, 11]), (0.5, [1, 3, 5, 7, 9, 11]), (0.67, None), (1 / 3, None)]
)
def test_those_that_stay_are_evenly_spaced(llava, keep, stay):
    inputs = llava.prompt([1, "image", "image", "image", 2])
    with torch.no_grad():
        embedded = llava.model(**inputs, output_hidden_states=True).hidden_states[0]
        with uniform_grid(llava.model, keep):
            final = llava.model(**inputs, output_hidden_states=True).hidden_states[1]
    # One that has left stays as it was.
    moved = (embedded != final).any(-1)[0]
    visual = (inputs["input_ids"][0] == llava.model.config.image_token_id).nonzero()[:, 0]
    found = [number for number, position in enumerate(visual.tolist()) if moved[position]]
    assert len(found) == int(12 * keep + 0.5)
    assert stay is None or found == stay
    gaps = {after - before for before, after in pairwise(found)}
    assert max(gaps) - min(gaps) <= 1


def test_none_is_blind(llava):
    inputs = llava.prompt(*PROMPTS["ragged batch"])
    with blind(llava.model):
        expected = llava.model.generate(**inputs, **OPTIONS)
    with uniform_grid(llava.model, 0):
        check_same(llava.model.generate(**inputs, **OPTIONS), expected)


def test_shares_are_from_0_to_1(llava):
    with pytest.raises(UserError, match=r"from 0 to 1; this is -0\.5"):
        uniform_grid(llava.model, -0.5).__enter__()
