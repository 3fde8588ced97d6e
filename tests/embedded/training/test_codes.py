import random

import pytest
import torch

from vtw_demo.embedded.scenes import random_scene
from vtw_demo.embedded.training.codes import (
    CLASSES,
    CODE_OF,
    CODES,
    NAMES,
    code_loss,
    codebook,
    patch_contents,
    word_codebook,
)

SCENES = [random_scene(random.Random(seed), 1 + seed) for seed in range(3)]


def test_codes_are_at_right_angles():
    book = codebook(192)
    torch.testing.assert_close(book @ book.T, torch.eye(CODES), atol=1e-5, rtol=0)


def test_the_codes_of_words_lie_near_them_and_at_right_angles(tokenizer):
    words = torch.randn(len(tokenizer), 192, generator=torch.Generator().manual_seed(0))
    book = word_codebook(words, tokenizer)
    torch.testing.assert_close(book @ book.T, torch.eye(CODES), atol=1e-4, rtol=0)
    for colour in NAMES["colour"]:
        word = words[tokenizer.encode(f" {colour}")].mean(0) - words.mean(0)
        assert int((book @ word).argmax()) == CODE_OF["colour", colour]


@pytest.mark.parametrize("side", [7, 14])
def test_every_object_is_somewhere_on_the_grid(side):
    contents = patch_contents(SCENES, side)
    for row, scene in enumerate(SCENES):
        for item in scene.objects:
            patch = contents[row, int(item.y * side) * side + int(item.x * side)]
            for name, codes in CLASSES.items():
                held = [NAMES[name][number] for number in patch[codes].nonzero().flatten()]
                assert held == ([getattr(item, name)] if getattr(item, name) else [])


def test_a_perfect_token_names_everything_and_has_almost_no_loss():
    book, contents = codebook(192), patch_contents(SCENES, 14)
    perfect = contents @ book
    loss, right = code_loss(perfect, contents, book)
    assert loss < 0.05
    assert set(right) >= NAMES.keys() - {"character"}
    assert set(right.values()) == {1.0}
    loss, _ = code_loss(torch.zeros_like(perfect), contents, book)
    assert loss > 5
