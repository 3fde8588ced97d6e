import random

import torch
from torch import nn

from vtw_demo.embedded.scenes import random_scene
from vtw_demo.embedded.training.naming import NAMES, naming_loss, patch_names, word_directions

SCENES = [random_scene(random.Random(seed), 1 + seed) for seed in range(3)]
SIDE = 14


def test_a_names_direction_is_its_words(tokenizer):
    words = torch.randn(len(tokenizer), 64, generator=torch.Generator().manual_seed(0))
    directions = word_directions(words, tokenizer)
    for number, colour in enumerate(NAMES["colour"]):
        word = words[tokenizer.encode(f" {colour}")].mean(0) - words.mean(0)
        assert int((directions["colour"] @ word).argmax()) == number
    assert all(torch.allclose(of.norm(dim=1), torch.ones(len(of))) for of in directions.values())


def test_every_object_is_named_where_it_is():
    names = patch_names(SCENES, SIDE)
    for row, scene in enumerate(SCENES):
        for item in scene.objects:
            patch = int(item.y * SIDE) * SIDE + int(item.x * SIDE)
            for name, values in NAMES.items():
                value = getattr(item, name)
                assert names[name][row, patch] == (-1 if value is None else values.index(value))
        assert (names["shape"][row] == -1).any()


def test_a_token_that_names_everything_has_almost_no_loss():
    width, names = 64, patch_names(SCENES, SIDE)
    generator = torch.Generator().manual_seed(0)
    of_all = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    directions = dict(zip(NAMES, of_all.split([len(v) for v in NAMES.values()] + [width - 40])[:-1], strict=True))
    perfect = torch.zeros(len(SCENES), SIDE**2, width)
    for name, numbers in names.items():
        perfect += torch.where((numbers >= 0)[..., None], directions[name][numbers.clamp(min=0)], 0.0)
    loss, right = naming_loss(perfect, names, directions)
    assert loss < 1
    assert set(right.values()) == {1.0}
    blank, _ = naming_loss(torch.zeros_like(perfect), names, directions)
    assert blank > 5 * loss
    learned = nn.Parameter(torch.zeros_like(perfect))
    naming_loss(learned, names, directions)[0].backward()
    assert (learned.grad * perfect).sum() < 0
