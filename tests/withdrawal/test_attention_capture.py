import threading

import pytest
import torch

from tests.families import LAYERS
from tests.tiny_models import build
from vtw_demo.withdrawal.attention_capture import attention_rows, captured_rows


def full_matrix(query, key, mask, scaling):
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    return ((query @ key.transpose(2, 3)) * scaling + mask).softmax(-1)


@pytest.mark.parametrize("kind", ["none", "causal", "bool", "float", "per head", "one row"])
def test_attention_rows(kind):
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, heads, 9, 8, generator=generator) for heads in (6, 3))
    causal = torch.ones(9, 9, dtype=torch.bool).tril()
    random = torch.randn(2, 6, 9, 9, generator=generator)
    mask, is_causal = {
        "none": (None, False),
        "causal": (None, True),
        "bool": ((causal & (torch.arange(9) > 1) | torch.eye(9, dtype=torch.bool)).expand(2, 1, 9, 9), True),
        "float": (random[:, :1], True),
        "per head": (random, True),
        "one row": (torch.arange(9).lt(7).expand(2, 1, 1, 9), True),
    }[kind]
    added = torch.zeros(9, 9) if mask is None else mask
    if added.dtype == torch.bool:
        added = torch.zeros(added.shape).masked_fill(~added, -torch.inf)
    if kind == "causal":
        added = torch.zeros(9, 9).masked_fill(~causal, -torch.inf)
    for scaling in (None, 0.7):
        expected = full_matrix(query, key, added, scaling or 8**-0.5)
        (rows,) = attention_rows(query, key, mask, 4, scaling, is_causal)
        torch.testing.assert_close(rows, expected[:, :, -4:])


def test_passes_of_other_threads_are_not_captured():
    tiny = build("llava")
    inputs = tiny.prompt([1, 2, "image", 3, 4])
    layers: list[int] = []

    def other_pass():
        with torch.no_grad():
            tiny.model(**inputs)

    thread = threading.Thread(target=other_pass)
    with captured_rows(tiny.model, 1, lambda layer, *rows: layers.append(layer)), torch.no_grad():
        thread.start()
        thread.join()
        assert layers == []
        tiny.model(**inputs)
    assert layers == list(range(LAYERS))
