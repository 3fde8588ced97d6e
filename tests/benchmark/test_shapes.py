import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from vtw_demo.benchmark.shapes import SHAPES, random_inputs, random_model
from vtw_demo.measurements.flops import prefill_flops
from vtw_demo.withdrawal.segments import visual_token_mask
from vtw_demo.withdrawal.withdraw import withdraw


@pytest.mark.parametrize("name", ["small", "embedded"])
def test_a_shape_runs_with_its_prompt(name):
    model = random_model(name)
    inputs = random_inputs(name, model, text_tokens=10, tokens_before=4, batch=2)
    visual = visual_token_mask(model.config, inputs["input_ids"])
    assert visual.sum(1).tolist() == [SHAPES[name].visual_tokens] * 2
    assert not visual[:, :4].any()
    with torch.inference_mode(), withdraw(model, 2):
        logits = model(**inputs, logits_to_keep=1).logits
    assert logits.shape[:2] == (2, 1)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "billions", "layers"),
    [
        ("llava-1.5-7b", 7.06, 32),
        ("llava-1.5-13b", 13.35, 40),
        ("llava-next-7b", 7.06, 32),
        ("qwen2.5-vl-7b", 8.29, 28),
        ("video-llava-7b", 7.37, 32),
    ],
)
def test_large_shapes_are_those_of_the_real_models(name, billions, layers):
    """Parameters as the models' cards count them; nothing of them is held here."""
    shape = SHAPES[name]
    config = shape.config()
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e9 == pytest.approx(billions, rel=0.01)
    assert config.get_text_config().num_hidden_layers == layers
    assert prefill_flops(config, shape.visual_tokens + 60, shape.visual_tokens, layers) > 1e12
    assert shape.pixels


def test_four_bits_quantize_the_decoders_linear_layers_only(tiny):
    model = random_model(tiny, quantization="4bit")
    kinds = {name: type(module).__name__ for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, kind in kinds.items():
        assert (kind == "Linear4bit") == ("language_model" in name), name
    inputs = random_inputs(tiny, model, 6, 2)
    with torch.inference_mode():
        assert model(**inputs).logits.isfinite().all()
    plain = random_model(tiny)
    with torch.inference_mode():
        assert (plain(**inputs).logits - model(**inputs).logits).std() < plain(**inputs).logits.std()


def test_bad_requests_are_refused(tiny):
    with pytest.raises(ValueError, match="not in 8"):
        random_model(tiny, quantization="8bit")
    with pytest.raises(ValueError, match="at least one comes after"):
        random_inputs(tiny, random_model(tiny), text_tokens=5, tokens_before=5)
