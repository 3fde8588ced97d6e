"""The closed form against torch's FLOP counter and against the bytes of a real KV cache."""

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.families import BRANCHES, FAMILIES, LAYERS, SPECIAL, VOCABULARY
from tests.grids import nightly_but
from tests.oracles import flash_attention_stand_in
from tests.tiny_models import build
from vtw_demo.measurements.flops import (
    LayerFlops,
    PrefillFlops,
    cache_left,
    flops_left,
    kv_cache_bytes_by_layer,
    prefill_flops,
    prefill_flops_by_layer,
)
from vtw_demo.withdrawal.architectures import find_decoder
from vtw_demo.withdrawal.withdraw import withdraw

IMAGE = 99
VISUAL = 64
PROMPT = 80
WINDOW = 50
NEW_TOKENS = 5
WITHDRAWAL_LAYERS = (1, LAYERS // 2, LAYERS)

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
LATENT = {
    **SIZES,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
}
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": WINDOW}

TEXT_CONFIGS: dict[str, hf.PreTrainedConfig] = {
    "llama": hf.LlamaConfig(**SIZES),
    "llama with heads of their own size": hf.LlamaConfig(**GROUPED, head_dim=20),
    "mistral": hf.MistralConfig(**GROUPED, sliding_window=WINDOW),
    "mistral without a window": hf.MistralConfig(**GROUPED, sliding_window=None),
    "ministral3": hf.Ministral3Config(**GROUPED, head_dim=8),
    "mixtral": hf.MixtralConfig(**GROUPED, num_local_experts=6, num_experts_per_tok=2),
    "qwen2": hf.Qwen2Config(**GROUPED),
    "qwen2_moe": hf.Qwen2MoeConfig(
        **GROUPED,
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=20,
        shared_expert_intermediate_size=28,
        mlp_only_layers=[1],
    ),
    "qwen3": hf.Qwen3Config(**GROUPED, head_dim=20),
    "qwen3_moe": hf.Qwen3MoeConfig(
        **GROUPED, head_dim=20, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=20, decoder_sparse_step=2
    ),
    "gemma": hf.GemmaConfig(**SIZES, num_key_value_heads=1, head_dim=20),
    "gemma2": hf.Gemma2Config(**GROUPED, head_dim=20, **ALTERNATING),
    "gemma3": hf.Gemma3TextConfig(**GROUPED, head_dim=20, **ALTERNATING),
    "phi": hf.PhiConfig(**SIZES),
    "phi3": hf.Phi3Config(**GROUPED),
    "phimoe": hf.PhimoeConfig(**GROUPED, num_local_experts=6, num_experts_per_tok=2),
    "olmo": hf.OlmoConfig(**GROUPED),
    "olmo2": hf.Olmo2Config(**GROUPED),
    "olmo3": hf.Olmo3Config(**GROUPED, **ALTERNATING),
    "olmoe": hf.OlmoeConfig(**GROUPED, num_experts=6, num_experts_per_tok=2),
    "deepseek_v2": hf.DeepseekV2Config(**LATENT),
    "deepseek_v2 without a query rank": hf.DeepseekV2Config(**LATENT | {"q_lora_rank": None}),
    "deepseek_v3": hf.DeepseekV3Config(**LATENT, n_group=1, topk_group=1),
    "minicpm3": hf.MiniCPM3Config(
        **{name: LATENT[name] for name in LATENT if "expert" not in name and "moe" not in name}
    ),
    "granite": hf.GraniteConfig(**GROUPED),
    "granitemoe": hf.GraniteMoeConfig(**GROUPED, num_local_experts=6, num_experts_per_tok=2),
    "granitemoeshared": hf.GraniteMoeSharedConfig(**GROUPED, shared_intermediate_size=28),
    "glm4": hf.Glm4Config(**GROUPED, head_dim=12),
    "glm4_moe": hf.Glm4MoeConfig(
        **GROUPED,
        head_dim=12,
        n_routed_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=20,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
    ),
    "gpt_oss": hf.GptOssConfig(
        **GROUPED, head_dim=12, num_local_experts=6, num_experts_per_tok=2, sliding_window=WINDOW
    ),
    "smollm3": hf.SmolLM3Config(**GROUPED),
    "starcoder2": hf.Starcoder2Config(**GROUPED),
    "stablelm": hf.StableLmConfig(**SIZES | {"num_attention_heads": 2, "num_key_value_heads": 2}),
    "nemotron": hf.NemotronConfig(**GROUPED, head_dim=12),
    "cohere": hf.CohereConfig(**GROUPED, use_qk_norm=True),
    "cohere2": hf.Cohere2Config(**GROUPED, **ALTERNATING),
    "persimmon": hf.PersimmonConfig(**SIZES),
    "xglm": hf.XGLMConfig(
        d_model=48, ffn_dim=100, num_layers=LAYERS, attention_heads=4, vocab_size=VOCABULARY, bos_token_id=1
    ),
    "hunyuan_v1_moe": hf.HunYuanMoEV1Config(**GROUPED, head_dim=12, num_experts=6, moe_topk=2),
    "diffllama": hf.DiffLlamaConfig(**SIZES, num_key_value_heads=4),
    "mimo_v2_flash": hf.MiMoV2FlashConfig(
        **GROUPED,
        head_dim=12,
        v_head_dim=8,
        n_routed_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=20,
        n_group=1,
        topk_group=1,
        sliding_window=WINDOW,
    ),
}
"""What is put into LLaVA."""


def kv_cache_bytes(*arguments, **options):
    return sum(kv_cache_bytes_by_layer(*arguments, **options))


@functools.cache
def llava(name: str) -> hf.PreTrainedModel:
    vision = hf.CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=16,
        patch_size=2,
        projection_dim=8,
    )
    config = hf.LlavaConfig(
        vision_config=vision, text_config=TEXT_CONFIGS[name], image_token_index=IMAGE, vision_feature_layer=-1
    )
    return with_weights(hf.LlavaForConditionalGeneration(config))


def with_weights(model: Any) -> hf.PreTrainedModel:
    """Random ones; some families leave theirs uninitialised."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


def llava_inputs() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[1, 2, 3, *[IMAGE] * VISUAL, *range(4, 4 + PROMPT - VISUAL - 3)]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.zeros(1, 3, 16, 16),
    }


@contextmanager
def all_products_counted(model: Any) -> Iterator[None]:
    """The counter knows no formula for the CPU's kernel of sdpa, nor for grouped products of experts; of eager
    attention, and of experts one after the other, it sees the products: those of a token with its own experts."""
    config = find_decoder(model).config
    before = config._attn_implementation, config._experts_implementation
    config._attn_implementation, config._experts_implementation = "eager", "eager"
    try:
        yield
    finally:
        config._attn_implementation, config._experts_implementation = before


def count_flops(model: Any, inputs: dict[str, torch.Tensor], layer: int) -> tuple[list[int], int, int]:
    """By torch's counter in a prefill: those of each decoder layer, of the head, of the whole decoder."""
    counter = FlopCounterMode(display=False)
    with withdraw(model, layer=layer), counter:
        model(**inputs, use_cache=True, logits_to_keep=1)
    counted = counter.get_flop_counts()
    names = {id(module): f"{type(model).__name__}.{name}" for name, module in model.named_modules()}

    def of(module: Any) -> int:
        return sum(counted[names[id(module)]].values())

    decoder = find_decoder(model)
    return (
        [of(module) for module in decoder.layers],
        of(model.get_output_embeddings() or model.language_model.lm_head),
        of(decoder),
    )


def check_flops(model: Any, inputs: dict[str, torch.Tensor], visual: int, layer: int) -> PrefillFlops:
    with all_products_counted(model):
        layers, head, decoder = count_flops(model, inputs, layer)
    costs = prefill_flops_by_layer(model.config, inputs["input_ids"].shape[1], visual, layer)
    assert [cost.total for cost in costs.layers] == layers
    assert costs.head == head
    assert costs.total == prefill_flops(model.config, inputs["input_ids"].shape[1], visual, layer)
    assert costs.total == pytest.approx(decoder + head, rel=0.01)  # the counter counts rotary embeddings, too
    return costs


def held_bytes(layer: Any) -> int:
    """Keys, values, an indexer's keys, and the states of recurrent layers and convolutions."""
    parts = [getattr(layer, name, None) for name in ("keys", "values", "indexer_keys")]
    # Behind the property that keeps a state to its own block.
    states = [vars(layer).get(name) or {} for name in ("conv_states", "recurrent_states")]
    parts += [part for state in states for part in state.values()]
    return sum(part.nbytes for part in parts if part is not None)


def check_cache(model: Any, inputs: dict[str, torch.Tensor], visual: int, layer: int) -> None:
    with withdraw(model, layer=layer):
        out = model.generate(
            **inputs,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            suppress_tokens=list(SPECIAL),
            return_dict_in_generate=True,
        )
    measured = tuple(map(held_bytes, out.past_key_values.layers))
    arguments = (model.config, inputs["input_ids"].shape[1], visual, layer, NEW_TOKENS - 1, 4)
    assert kv_cache_bytes_by_layer(*arguments) == measured
    assert kv_cache_bytes(*arguments) == sum(measured) > 0


@pytest.mark.parametrize("layer", nightly_but((LAYERS // 2,), WITHDRAWAL_LAYERS))
@pytest.mark.parametrize("name", TEXT_CONFIGS)
def test_text_decoders(name, layer):
    model, inputs = llava(name), llava_inputs()
    costs = check_flops(model, inputs, VISUAL, layer)
    assert [cost.tokens for cost in costs.layers] == [PROMPT] * layer + [PROMPT - VISUAL] * (LAYERS - layer)
    check_cache(model, inputs, VISUAL, layer)


@pytest.mark.parametrize("layer", nightly_but((LAYERS // 2,), WITHDRAWAL_LAYERS))
@pytest.mark.parametrize("name", nightly_but(BRANCHES, FAMILIES))
def test_families(name, layer):
    tiny = build(name)
    inputs, visual = tiny.prompt([1, 2, "image", 3, 4, 5]), tiny.counts["image"]
    check_flops(tiny.model, inputs, visual, layer)
    check_cache(tiny.model, inputs, visual, layer)


@pytest.mark.parametrize("text", [1, 90])
@pytest.mark.parametrize("name", [name for name in FAMILIES if not FAMILIES[name].masks])
def test_recurrent_layers_and_indexers(name, text):
    """Of a prompt that is shorter than a chunk and a convolution's kernel, and of one that has several chunks."""
    tiny = build(name)
    inputs, visual = tiny.prompt(["image", *[3] * text]), tiny.counts["image"]
    for layer in (1, 2, LAYERS):
        check_flops(tiny.model, inputs, visual, layer)
        check_cache(tiny.model, inputs, visual, layer)


@functools.cache
def gemma4(**options: Any) -> Any:
    """Another gemma4 than that of the families."""
    config = FAMILIES["gemma4"].config()
    text = {**config.text_config.to_dict(), **options}
    return with_weights(
        hf.Gemma4ForConditionalGeneration(
            hf.Gemma4Config(
                text_config=text,
                vision_config=config.vision_config,
                image_token_id=config.image_token_id,
                video_token_id=config.video_token_id,
                boi_token_id=config.boi_token_id,
                eoi_token_id=config.eoi_token_id,
                audio_token_id=config.audio_token_id,
            )
        )
    )


@pytest.mark.parametrize("layer", [1, 2, 3, LAYERS])
@pytest.mark.parametrize(
    "options",
    [
        {
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "global_head_dim": 16,
        },
        {"enable_moe_block": True, "num_experts": 6, "top_k_experts": 2, "moe_intermediate_size": 20},
        {"use_double_wide_mlp": True},
    ],
    ids=["keys are values", "mixture of experts", "wide MLPs where keys are shared"],
)
def test_gemma4(options, layer):
    model, tiny = gemma4(**options), build("gemma4")
    inputs = tiny.prompt([1, 2, "image", 3, 4, 5])
    check_flops(model, inputs, tiny.counts["image"], layer)
    check_cache(model, inputs, tiny.counts["image"], layer)


@pytest.mark.parametrize("layer", WITHDRAWAL_LAYERS)
def test_shared_keys_are_run_at_the_last_position_but_not_with_flash_attention(layer):
    """gemma4's last two layers use the keys and values of the first two."""
    model, tiny = gemma4(sliding_window=64), build("gemma4")
    inputs, visual = tiny.prompt([1, 2, "image", 3, 4, 5]), tiny.counts["image"]
    prompt = inputs["input_ids"].shape[1]
    assert [cost.tokens for cost in prefill_flops_by_layer(model.config, prompt, visual, layer).layers[2:]] == [
        1,
        1,
    ]
    with flash_attention_stand_in(model):
        counted, *_ = count_flops(model, inputs, layer)
        costs = prefill_flops_by_layer(model.config, prompt, visual, layer).layers
    assert [cost.total for cost in costs] == counted
    assert costs[-1].tokens == (prompt if layer == LAYERS else prompt - visual)


@pytest.mark.parametrize("layer", WITHDRAWAL_LAYERS)
def test_llama4_with_some_layers_of_experts(layer):
    family = FAMILIES["llama4"]
    config = family.config()
    text = {
        **config.text_config.to_dict(),
        "interleave_moe_layer_step": 2,
        "moe_layers": None,
        "intermediate_size_mlp": 40,
    }
    model = with_weights(
        hf.Llama4ForConditionalGeneration(
            hf.Llama4Config(text_config=text, vision_config=config.vision_config, image_token_index=IMAGE)
        )
    )
    tiny = build("llama4")
    inputs = tiny.prompt([1, 2, "image", 3, 4, 5])
    costs = check_flops(model, inputs, tiny.counts["image"], layer)
    assert costs.layers[0].mlp == 2 * 9 * 3 * 32 * 40  # a gated MLP
    check_cache(model, inputs, tiny.counts["image"], layer)


@pytest.mark.parametrize("layer", WITHDRAWAL_LAYERS)
def test_visual_tokens_with_experts_of_their_own(layer):
    """They run on the marks around a picture, too."""
    text = {
        **GROUPED,
        "num_attention_heads": 4,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_num_shared_experts": 1,
        "moe_intermediate_size": [40, 12],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]},
    }
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "patch_size": 4}
    config = hf.Ernie4_5_VLMoeConfig(text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=98)
    model = with_weights(hf.Ernie4_5_VLMoeForConditionalGeneration(config))
    inputs = llava_inputs()
    types = (inputs["input_ids"] == IMAGE).int()
    inputs |= {
        "pixel_values": torch.zeros(4 * VISUAL, 3 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 16, 16]]),
        "mm_token_type_ids": types,
        "moe_mm_token_type_ids": nn.functional.max_pool1d(types.float(), 3, stride=1, padding=1).int(),
    }
    check_flops(model, inputs, VISUAL, layer)
    check_cache(model, inputs, VISUAL, layer)


def test_counter_counts_sdpa_as_the_full_square():
    """What the docstring says of the attention products is what the counter does on a GPU."""
    heads, tokens, head_dim = 4, 80, 12
    query = torch.empty(1, heads, tokens, head_dim, device="meta", dtype=torch.float16)
    counter = FlopCounterMode(display=False)
    with counter:
        torch.ops.aten._scaled_dot_product_flash_attention(query, query, query, is_causal=True)
    (layer, *_) = prefill_flops_by_layer(TEXT_CONFIGS["llama"], tokens, 0, LAYERS).layers
    assert layer.attention == counter.get_total_flops()


def test_llava_7b_against_known_numbers():
    """LLaVA-1.5-7B: 32 layers, 4096 wide; its cache takes half a mebibyte a token in float16."""
    config = hf.LlavaConfig(text_config=hf.LlamaConfig(vocab_size=32064))
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
    for config in (TEXT_CONFIGS["llama"], build("gemma3n").model.config):
        assert prefill_flops(config, 20, 0, 1) == prefill_flops(config, 20, 0, LAYERS)
        assert kv_cache_bytes(config, 20, 0, 1) == kv_cache_bytes(config, 20, 0, LAYERS)


def test_a_prompt_of_visual_tokens_only_leaves_one_slot():
    model = llava("llama")
    ids = torch.full((1, VISUAL), IMAGE)
    with torch.no_grad(), withdraw(model, layer=2):
        out = model(input_ids=ids, pixel_values=torch.zeros(1, 3, 16, 16), use_cache=True)
    measured = tuple(part.keys.nbytes + part.values.nbytes for part in out.past_key_values.layers)
    assert kv_cache_bytes_by_layer(model.config, VISUAL, VISUAL, 2, bytes_per_element=4) == measured


@pytest.mark.parametrize("layer", [0, LAYERS + 1])
@pytest.mark.parametrize("function", [prefill_flops, kv_cache_bytes])
def test_a_layer_that_is_not_there(function, layer):
    with pytest.raises(ValueError, match=f"from 1 to {LAYERS}.*this is {layer}"):
        function(TEXT_CONFIGS["llama"], 10, 5, layer)


def test_a_sliding_window_that_no_layer_uses():
    config = hf.Qwen2Config(**GROUPED, sliding_window=100, use_sliding_window=False)
    assert kv_cache_bytes(config, 200, 0, LAYERS) == 2 * kv_cache_bytes(config, 100, 0, LAYERS)


def test_results_are_immutable():
    layer = LayerFlops(tokens=4, projections=1, attention=2, mlp=3)
    assert layer.total == 6
    assert PrefillFlops(layers=(layer, layer), head=5, around=7).total == 24
    with pytest.raises(dataclasses.FrozenInstanceError):
        layer.mlp = 0


@pytest.mark.parametrize("name", ["qwen2", "qwen3_moe", "gemma3", "deepseek_v3"])
def test_shares_left_at_every_layer(name):
    config = TEXT_CONFIGS[name]
    for cost, left in ((prefill_flops, flops_left), (kv_cache_bytes, cache_left)):
        full = cost(config, PROMPT, VISUAL, LAYERS)
        expected = [cost(config, PROMPT, VISUAL, layer) / full for layer in range(1, LAYERS)]
        assert left(config, PROMPT, VISUAL) == pytest.approx(expected)
        assert list(expected) == sorted(expected)


def test_no_shares_where_costs_are_not_known():
    assert flops_left(hf.GPT2Config(), PROMPT, VISUAL) is None
    assert cache_left(hf.GPT2Config(), PROMPT, VISUAL) is None
