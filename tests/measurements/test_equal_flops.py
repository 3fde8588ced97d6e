"""What schedules cost against torch's counter, and the rivals at withdrawal's cost."""

import pytest
import torch
import transformers as hf
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.families import IMAGE
from tests.measurements.test_flops import TEXT_CONFIGS
from vtw_demo.errors import UserError
from vtw_demo.measurements.equal_flops import RIVALS, equal_recipe, equal_schedule, recipe_in_words, schedule_of
from vtw_demo.measurements.flops import kv_cache_bytes_by_layer, prefill_flops, prefill_flops_by_layer
from vtw_demo.withdrawal.architectures import find_decoder
from vtw_demo.withdrawal.prune import prune

PROMPT, VISUAL, LAYERS = 300, 256, 8


@pytest.fixture(scope="module", params=["llama", "qwen2", "gemma3"])
def model(request):
    torch.manual_seed(0)
    kinds = {"llama": hf.LlamaConfig, "qwen2": hf.Qwen2Config, "gemma3": hf.Gemma3TextConfig}
    text = kinds[request.param](
        hidden_size=64, intermediate_size=160, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, vocab_size=100, layer_types=None, sliding_window=4096,
    )  # fmt: skip
    vision = hf.CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=32, patch_size=2
    )
    config = hf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-1)
    return hf.LlavaForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def inputs():
    ids = torch.tensor([[1, 2, 3, *[IMAGE] * VISUAL, *range(4, 4 + PROMPT - VISUAL - 3)]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, 32, 32)}


RECIPES = (
    "2:fastv:0.5",
    "2:pyramid_drop:0.5;4:pyramid_drop:0.25;6:pyramid_drop:0.125",
    "3:random_tokens:0",
    "0:uniform_grid:0.4",
    "0:uniform_grid:0.7;2:fastv:0.5;6:withdraw",
)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_schedule_costs_what_torch_counts(model, inputs, recipe):
    counter = FlopCounterMode(display=False)
    # Of this kernel alone the counter sees the products on a CPU.
    with torch.no_grad(), prune(model, recipe), sdpa_kernel(SDPBackend.MATH), counter:
        cache = model(**inputs, use_cache=True, logits_to_keep=1).past_key_values
    schedule, size = schedule_of(recipe), (model.config, PROMPT, VISUAL)
    names = {id(module): f"{type(model).__name__}.{name}" for name, module in model.named_modules()}
    counted = [sum(counter.get_flop_counts()[names[id(module)]].values()) for module in find_decoder(model).layers]
    costs = prefill_flops_by_layer(*size, schedule)
    assert [cost.total for cost in costs.layers] == pytest.approx(counted, rel=0.01)
    assert sum(cost.total for cost in costs.layers) == pytest.approx(sum(counted), rel=0.005)
    held = tuple(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kv_cache_bytes_by_layer(*size, schedule, bytes_per_element=4) == held


@pytest.mark.parametrize("layer", range(2, LAYERS + 1))
@pytest.mark.parametrize("rival", RIVALS)
def test_a_rival_takes_as_many_flops(model, rival, layer):
    size = (model.config, PROMPT, VISUAL)
    schedule = equal_schedule(rival, *size, layer)
    allowed, taken = prefill_flops(*size, layer), prefill_flops(*size, schedule)
    # A token more or less, in as many layers as it may be in.
    token = prefill_flops(*size, LAYERS) / PROMPT
    assert abs(taken - allowed) <= token
    recipe = equal_recipe(rival, *size, layer)
    assert prefill_flops(*size, schedule_of(recipe)) == taken
    with prune(model, recipe):
        pass


def test_a_rival_that_begins_later_is_refused(model):
    with pytest.raises(UserError, match=r"fastv drops its first tokens before layer 2, and can't save as much.*K = 1"):
        equal_schedule("fastv", model.config, PROMPT, VISUAL, 1)
    assert equal_schedule("fastv", model.config, PROMPT, VISUAL, 2) == {2: 0.0}


def test_recipes_in_words():
    assert recipe_in_words("fastv") == "FastV"
    assert recipe_in_words("2:fastv:0.5;16:withdraw") == (
        "FastV, 50 % of the visual tokens left from layer 2 on; "
        "withdrawal, 0 % of the visual tokens left from layer 16 on"
    )
    assert recipe_in_words("8:random_tokens:0.0") == (
        "random tokens, 100 % as many tokens gone as there are visual ones from layer 8 on"
    )


def test_nothing_withdrawn_is_nothing_pruned(model):
    for rival in RIVALS:
        assert set(equal_schedule(rival, model.config, PROMPT, VISUAL, LAYERS).values()) == {1.0}


def test_what_a_schedule_of_one_step_costs_is_what_withdrawal_costs():
    config = TEXT_CONFIGS["llama"]
    layers = config.num_hidden_layers
    for layer in range(1, layers):
        assert prefill_flops(config, 90, 64, {layer: 0.0}) == prefill_flops(config, 90, 64, layer)
    assert prefill_flops(config, 90, 64, {}) == prefill_flops(config, 90, 64, layers)
    assert prefill_flops(config, 90, 64, {0: 0.0}) == prefill_flops(config, 26, 0, layers)
