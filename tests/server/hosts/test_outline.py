"""What the page knows of a model that another process has."""

import pickle

import pytest
import torch

from vtw_demo.models.loading import load
from vtw_demo.server.hosts.outline import Facts

KNOWN = (
    "name", "revision", "note", "layers", "context", "precision", "quantization", "quantized_modules", "quantized",
    "memory_bytes", "device", "place", "detail", "details", "picture_settings", "sampling",
)  # fmt: skip


@pytest.fixture(params=[None, "4bit"])
def both(request, small_folder):
    vlm = load(str(small_folder), quantization=request.param, device="cpu")
    return vlm, pickle.loads(pickle.dumps(Facts.of(vlm))).outline()


def test_all_that_the_page_asks_of_it_is_as_of_the_model(both, picture):
    vlm, outline = both
    assert {name: getattr(outline, name) for name in KNOWN} == {name: getattr(vlm, name) for name in KNOWN}
    assert outline.picture_tokens(picture) == vlm.picture_tokens(picture)
    assert outline.decode([5, 300, 41]) == vlm.decode([5, 300, 41])
    assert outline.at_detail("low").picture_detail == "low"


def test_its_weights_are_nowhere_and_its_prompts_in_this_machines_memory(both, picture):
    vlm, outline = both
    assert all(weights.is_meta for weights in outline.model.parameters())
    here, there = vlm.prompt(picture, "What is shown?"), outline.prompt(picture, "What is shown?")
    assert there.inputs.keys() == here.inputs.keys()
    for name, value in there.inputs.items():
        assert value.device.type == "cpu"
        assert torch.equal(value, here.inputs[name])
