import pytest
import torch

from tests.families import OPTIONS, PROMPTS, build
from vtw_demo.evaluation.answering import shared_encoding

FAMILIES = ("llava", "llava_next", "paligemma", "gemma3", "internvl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "mistral3")


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_the_same(name):
    tiny = build(name)
    inputs = tiny.prompt(*PROMPTS["several images"])
    expected = tiny.model.generate(**inputs, **OPTIONS)
    with shared_encoding(tiny.model):
        for _ in range(2):
            out = tiny.model.generate(**inputs, **OPTIONS)
            torch.testing.assert_close(torch.stack(out.logits), torch.stack(expected.logits))
    assert "get_image_features" not in vars(tiny.model.model)


def test_each_picture_is_encoded_once():
    tiny, seen = build("llava"), []
    inputs = tiny.prompt([1, "image", 2], [3, "image", 4])
    inputs["pixel_values"] = inputs["pixel_values"][[0, 0]]
    tower = tiny.model.model.vision_tower
    handle = tower.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    try:
        with torch.no_grad(), shared_encoding(tiny.model):
            first = tiny.model(**inputs).logits
            assert torch.equal(tiny.model(**inputs).logits, first)
            tiny.model(
                **{**inputs, "pixel_values": inputs["pixel_values"] + torch.tensor([0.0, 1.0])[:, None, None, None]}
            )
    finally:
        handle.remove()
    assert seen == [1, 1]
