"""The closed form against torch's FLOP counter and against the bytes of a real KV cache."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPVisionConfig,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MixtralConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Starcoder2Config,
)

from vtw_demo.cost import (
    LayerFlops,
    PrefillFlops,
    cache_left,
    flops_left,
    kv_cache_bytes,
    kv_cache_bytes_by_layer,
    prefill_flops,
    prefill_flops_by_layer,
)
from vtw_demo.withdrawal import withdraw

IMAGE = 89
LAYERS = 4
VISUAL = 64
PROMPT = 80

SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "vocab_size": 90,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
TEXT_CONFIGS = {
    "multi-head": LlamaConfig(**SIZES, intermediate_size=100),
    "grouped-query": Qwen2Config(**SIZES, intermediate_size=100, num_key_value_heads=2),
    "explicit head_dim": GemmaConfig(**SIZES, intermediate_size=60, num_key_value_heads=1, head_dim=20),
    "MLP without a gate, Phi": PhiConfig(**SIZES, intermediate_size=100),
    "MLP without a gate, Starcoder2": Starcoder2Config(**SIZES, intermediate_size=100, num_key_value_heads=2),
    "sliding window": MistralConfig(**SIZES, intermediate_size=60, num_key_value_heads=2, sliding_window=50),
    "sliding window in some layers": Gemma3TextConfig(
        **SIZES,
        intermediate_size=60,
        num_key_value_heads=1,
        head_dim=20,
        sliding_window=50,
        layer_types=["sliding_attention", "full_attention"] * 2,
    ),
}


def llava(text: PreTrainedConfig) -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=16,
        patch_size=2,
        projection_dim=8,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        # The counter knows no formula for the CPU's kernel of sdpa; of eager attention it sees the products.
        attn_implementation="eager",
    )
    return LlavaForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[1, 2, 3, *[IMAGE] * VISUAL, *range(4, 4 + PROMPT - VISUAL - 3)]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.zeros(1, 3, 16, 16),
    }


@pytest.mark.parametrize("layer", [1, 2, 3, LAYERS])
@pytest.mark.parametrize("name", TEXT_CONFIGS)
def test_prefill_flops_equal_the_counter(inputs, name, layer):
    model = llava(TEXT_CONFIGS[name])
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), withdraw(model, layer=layer), counter:
        model(**inputs, logits_to_keep=1)
    counted = counter.get_flop_counts()
    decoder = sum(counted["LlavaForConditionalGeneration.model.language_model"].values())
    head = sum(counted["LlavaForConditionalGeneration.lm_head"].values())

    costs = prefill_flops_by_layer(model.config, PROMPT, VISUAL, layer)
    assert costs.head == head
    assert costs.total == prefill_flops(model.config, PROMPT, VISUAL, layer)
    assert costs.total == pytest.approx(decoder + head, rel=0.01)
    for index, cost in enumerate(costs.layers):
        module = f"LlavaForConditionalGeneration.model.language_model.layers.{index}"
        assert cost.total == sum(counted[module].values())
        assert cost.tokens == (PROMPT if index < layer else PROMPT - VISUAL)


def test_counter_counts_sdpa_as_the_full_square():
    """What the docstring says of the attention products is what the counter does on a GPU."""
    heads, tokens, head_dim = 4, 80, 12
    query = torch.empty(1, heads, tokens, head_dim, device="meta", dtype=torch.float16)
    counter = FlopCounterMode(display=False)
    with counter:
        torch.ops.aten._scaled_dot_product_flash_attention(query, query, query, is_causal=True)
    config = LlamaConfig(**SIZES, intermediate_size=100)
    (layer, *_) = prefill_flops_by_layer(config, tokens, 0, LAYERS).layers
    assert layer.attention == counter.get_total_flops()


@pytest.mark.parametrize("layer", [1, 3, LAYERS])
@pytest.mark.parametrize("name", TEXT_CONFIGS)
def test_kv_cache_bytes_equal_the_cache(inputs, name, layer):
    model = llava(TEXT_CONFIGS[name])
    with withdraw(model, layer=layer):
        out = model.generate(
            **inputs,
            max_new_tokens=5,
            do_sample=False,
            suppress_tokens=[IMAGE],
            return_dict_in_generate=True,
        )
    measured = tuple(part.keys.nbytes + part.values.nbytes for part in out.past_key_values.layers)
    sizes = {"decoded_tokens": 4, "bytes_per_element": 4}
    assert kv_cache_bytes_by_layer(model.config, PROMPT, VISUAL, layer, **sizes) == measured
    assert kv_cache_bytes(model.config, PROMPT, VISUAL, layer, **sizes) == sum(measured)


def test_llava_7b_against_known_numbers():
    """LLaVA-1.5-7B: 32 layers, 4096 wide; its cache takes half a mebibyte a token in float16."""
    config = LlavaConfig(text_config=LlamaConfig(vocab_size=32064))
    assert kv_cache_bytes(config, 1000, 0, 32) == 1000 * 2**19
    # A layer's weights: four square projections and three MLP matrices; two FLOPs for each, token by token.
    weights = 4 * 4096**2 + 3 * 4096 * 11008
    (first, *_, last) = prefill_flops_by_layer(config, 640, 576, 16).layers
    assert first.projections + first.mlp == 2 * weights * 640
    assert last.projections + last.mlp == 2 * weights * 64
    assert first.attention == 100 * last.attention
    saved = 1 - prefill_flops(config, 640, 576, 16) / prefill_flops(config, 640, 576, 32)
    assert saved == pytest.approx(0.45, abs=0.005)


def test_a_prompt_without_an_image_costs_the_same_at_every_layer():
    config = TEXT_CONFIGS["multi-head"]
    assert prefill_flops(config, 20, 0, 1) == prefill_flops(config, 20, 0, LAYERS)
    assert kv_cache_bytes(config, 20, 0, 1) == kv_cache_bytes(config, 20, 0, LAYERS)


def test_a_prompt_of_visual_tokens_only_leaves_one_slot(inputs):
    model = llava(TEXT_CONFIGS["multi-head"])
    ids = torch.full((1, VISUAL), IMAGE)
    with torch.no_grad(), withdraw(model, layer=2):
        out = model(input_ids=ids, pixel_values=inputs["pixel_values"], use_cache=True)
    measured = tuple(part.keys.nbytes + part.values.nbytes for part in out.past_key_values.layers)
    assert kv_cache_bytes_by_layer(model.config, VISUAL, VISUAL, 2, bytes_per_element=4) == measured


def test_gate_can_be_told():
    config = TEXT_CONFIGS["multi-head"]
    gated = prefill_flops_by_layer(config, 20, 0, LAYERS).layers[0]
    ungated = prefill_flops_by_layer(config, 20, 0, LAYERS, gated_mlp=False).layers[0]
    assert 2 * gated.mlp == 3 * ungated.mlp


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0, 1), "prompt_tokens must be an integer of at least 1; this is 0"),
        ((10, -1, 1), "visual_tokens must be an integer of at least 0; this is -1"),
        ((10, 2.5, 1), "this is 2.5"),
        ((10, 11, 1), "visual_tokens is 11, more than the 10"),
        ((10, 5, 0), "layer must be an integer of at least 1; this is 0"),
        ((10, 5, True), "this is True"),
        ((10, 5, LAYERS + 1), f"from 1 to {LAYERS}.*this is {LAYERS + 1}"),
    ],
)
def test_bad_counts(arguments, message):
    config = TEXT_CONFIGS["multi-head"]
    for function in (prefill_flops, kv_cache_bytes):
        with pytest.raises(ValueError, match=message):
            function(config, *arguments)


def test_bad_cache_sizes():
    config = TEXT_CONFIGS["multi-head"]
    with pytest.raises(ValueError, match=r"decoded_tokens.*this is -1"):
        kv_cache_bytes(config, 10, 5, 1, decoded_tokens=-1)
    with pytest.raises(ValueError, match=r"bytes_per_element.*this is 0"):
        kv_cache_bytes(config, 10, 5, 1, bytes_per_element=0)


def test_decoders_that_the_formula_does_not_describe():
    with pytest.raises(ValueError, match="MixtralConfig has num_local_experts = 8"):
        prefill_flops(MixtralConfig(), 10, 5, 1)
    with pytest.raises(ValueError, match="CLIPVisionConfig has no vocab_size"):
        prefill_flops(CLIPVisionConfig(), 10, 5, 1)
    linear = Qwen2Config(**SIZES, layer_types=["full_attention", "linear_attention"] * 2)
    with pytest.raises(ValueError, match="linear_attention"):
        prefill_flops(linear, 10, 5, 1)


def test_a_sliding_window_that_no_layer_uses():
    config = Qwen2Config(**SIZES, sliding_window=100, use_sliding_window=False)
    assert kv_cache_bytes(config, 200, 0, LAYERS) == 2 * kv_cache_bytes(config, 100, 0, LAYERS)


def test_results_are_immutable_and_valid():
    layer = LayerFlops(tokens=4, projections=1, attention=2, mlp=3)
    assert layer.total == 6
    with pytest.raises(dataclasses.FrozenInstanceError):
        layer.mlp = 0
    with pytest.raises(ValueError, match="attention must be an integer of at least 0; this is -2"):
        LayerFlops(tokens=4, projections=1, attention=-2, mlp=3)
    with pytest.raises(ValueError, match="at least one decoder layer"):
        PrefillFlops(layers=(), head=1)
    with pytest.raises(ValueError, match="don't come back"):
        PrefillFlops(layers=(layer, dataclasses.replace(layer, tokens=5)), head=1)


def test_shares_left_at_every_layer():
    config = TEXT_CONFIGS["grouped-query"]
    for cost, left in ((prefill_flops, flops_left), (kv_cache_bytes, cache_left)):
        full = cost(config, PROMPT, VISUAL, LAYERS)
        expected = [cost(config, PROMPT, VISUAL, layer) / full for layer in range(1, LAYERS)]
        assert left(config, PROMPT, VISUAL) == pytest.approx(expected)
        assert left(MixtralConfig(), PROMPT, VISUAL) is None
