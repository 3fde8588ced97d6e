"""Shapes of real decoders against their published sizes, and decoders that aren't understood.

That the shapes are right is tested where they are used, in `tests/measurements/test_flops.py`.
"""

import pytest
import torch
import transformers as hf

from vtw_demo.measurements.decoder_shape import decoder_shape

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 60,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize(
    ("config", "billions"),
    [
        (hf.MixtralConfig(), 12.9),
        (
            hf.Qwen3MoeConfig(
                hidden_size=2048,
                num_hidden_layers=48,
                num_attention_heads=32,
                num_key_value_heads=4,
                head_dim=128,
                num_experts=128,
                num_experts_per_tok=8,
                moe_intermediate_size=768,
                vocab_size=151_936,
            ),
            3.3,
        ),
        (hf.DeepseekV3Config(), 37),
        (hf.Llama4TextConfig(), 109),  # 17 of them would do, but transformers runs every expert
    ],
    ids=["Mixtral 8x7B", "Qwen3 30B-A3B", "DeepSeek V3", "Llama 4 Scout"],
)
def test_active_parameters_are_the_published_ones(config, billions):
    """Those that a token meets: all matrices that it is multiplied with, the head, and its row of as large an
    embedding, which the published numbers count whole."""
    shape = decoder_shape(config)
    numbers = sum(layer.projections + layer.mlp for layer in shape.layers) + 2 * shape.head
    assert numbers / 1e9 == pytest.approx(billions, rel=0.03)


def test_deepseek_caches_512_latent_and_64_rotary_numbers():
    assert {layer.cached for layer in decoder_shape(hf.DeepseekV3Config()).layers} == {576}


def test_reading_leaves_configuration_and_random_numbers_alone():
    config = hf.LlavaConfig(text_config=hf.Qwen2Config(**SIZES))
    written, state = config.to_json_string(), torch.get_rng_state()
    decoder_shape(config)
    assert config.to_json_string() == written
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32


def test_a_changed_configuration_is_read_again():
    config = hf.LlavaConfig(text_config=hf.Qwen2Config(**SIZES))
    before = decoder_shape(config).layers[0].mlp
    config.text_config.intermediate_size *= 2
    assert decoder_shape(config).layers[0].mlp == 2 * before


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            hf.Qwen2Config(**SIZES, layer_types=["full_attention", "hybrid"] * 2),
            r"Qwen2Config has layers of the kinds \['hybrid'\]",
        ),
        (hf.GPT2Config(), "GPT2Model has no decoder layers"),
        (hf.CLIPVisionConfig(), "CLIPVisionModel has no decoder layers"),
        (hf.GPTNeoXConfig(**SIZES), "GPTNeoXLayer has no attention whose heads can be told"),
        (hf.DogeConfig(**SIZES, is_moe=True, num_experts=16), "DogeDecoderLayer has matrices of the kind Embedding"),
        (hf.PreTrainedConfig(), "knows no model for a PreTrainedConfig"),
    ],
)
def test_decoders_that_are_not_understood(config, message):
    with pytest.raises(ValueError, match=message):
        decoder_shape(config)
