import random

import pytest
import torch

from vtw_demo.embedded.scenes import random_scene
from vtw_demo.embedded.training.codes import CODES, NAMES, code_loss, code_of, codebook, names_right, patch_contents

SCENES = [random_scene(random.Random(seed), 1 + seed) for seed in range(3)]


def test_codes_are_at_right_angles():
    book = codebook(192)
    torch.testing.assert_close(book @ book.T, torch.eye(CODES), atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [7, 14])
def test_every_object_is_somewhere_on_the_grid(side):
    contents = patch_contents(SCENES, side)
    for row, scene in enumerate(SCENES):
        for item in scene.objects:
            patch = int(item.y * side) * side + int(item.x * side)
            for name in ("shape", "colour", "size", "place"):
                assert NAMES[name][contents.names[name][row, patch]] == getattr(item, name)
                assert contents.weights[row, patch, code_of(name, getattr(item, name))] == 1
            if item.character:
                assert NAMES["character"][contents.names["character"][row, patch]] == item.character


def test_a_perfect_token_names_everything_and_has_almost_no_loss():
    book, contents = codebook(192), patch_contents(SCENES, 14)
    perfect = contents.weights @ book
    assert all(share == 1 for name, share in names_right(perfect, contents, book).items() if name != "character")
    assert code_loss(perfect, contents, book) < 0.05
    assert code_loss(torch.zeros_like(perfect), contents, book) > 5
