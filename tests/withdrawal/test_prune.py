"""Every recipe is exact: each is compared with the whole model, in which nothing sees what has left."""

import pytest
import torch
import transformers as hf
from packaging.version import Version

from tests.families import BRANCHES, FAMILIES
from tests.grids import nightly_but
from tests.oracles import kept_tokens_alone
from tests.recipes import check_recipe, left_by
from tests.tiny_models import PROMPTS, TinyModel, build
from vtw_demo import prune, withdraw
from vtw_demo.errors import UserError
from vtw_demo.withdrawal.architectures import find_attention, find_decoder
from vtw_demo.withdrawal.prune import read_recipe, write_recipe

RECIPES = (
    "2:fastv:0.5",
    "1:fastv:0.5;2:pyramid_drop:0.25;3:withdraw",
    "0:uniform_grid:0.75;2:fastv:0.5",
    "2:fastv:0.5;3:uniform_grid:0.25",
)
MASKED = [name for name in FAMILIES if FAMILIES[name].masks]
WAYS = {
    "beams": {"num_beams": 3},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
}


@pytest.fixture(scope="module")
def llava() -> TinyModel:
    return build("llava")


@pytest.mark.parametrize("kind", ["one image", "several images", "ragged batch"])
@pytest.mark.parametrize(
    ("name", "recipe"),
    nightly_but(
        [(name, recipe) for name in BRANCHES for recipe in RECIPES],
        [(name, recipe) for name in MASKED for recipe in RECIPES],
    ),
)
def test_a_recipe_equals_masking(name, recipe, kind):
    tiny = build(name)
    check_recipe(tiny, tiny.prompt(*PROMPTS[kind]), recipe)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [name for name in BRANCHES if name in MASKED])
def test_ways_of_generating(name, way):
    tiny = build(name)
    if (name, way) == ("llama4", "beams"):
        pytest.skip("its generate can't repeat pictures")
    if (name, way) == ("llama4", "static cache") and Version(hf.__version__) < Version("5.18"):
        pytest.skip("this version of it has no static cache")
    rows = [[1, "image", 2, 3], [4, "image", 5, 6, 7, 8]] if way == "beams" else PROMPTS["ragged batch"]
    # Without a cache, each new token is the last of a prompt, and ranks anew.
    recipe = "0:uniform_grid:0.75;2:uniform_grid:0.5;3:withdraw" if way == "no cache" else RECIPES[1]
    check_recipe(tiny, tiny.prompt(*rows), recipe, **WAYS[way])


def test_each_stage_holds_what_is_left(llava):
    inputs = llava.prompt([1, "image", 2, "image", 3, 4])
    out, _ = check_recipe(llava, inputs, RECIPES[1])
    text, visual = 4, 2 * llava.counts["image"]
    held = [layer.keys.shape[-2] - 3 for layer in out.past_key_values.layers]
    around = inputs["input_ids"].shape[1] - text - visual
    assert held == [text + around + part for part in (visual, visual // 2, visual // 4, 0)]


@pytest.mark.parametrize("name", ["llava", "gemma4", "qwen3_vl"])
def test_hidden_states_and_logits_keep_their_shape(name):
    tiny = build(name)
    inputs = tiny.prompt(*PROMPTS["ragged batch"])
    left = left_by(tiny, inputs, RECIPES[1])
    with torch.no_grad():
        bare = tiny.model(**inputs, output_hidden_states=True)
        with prune(tiny.model, RECIPES[1]):
            out = tiny.model(**inputs, output_hidden_states=True)
            last = tiny.model(**inputs, logits_to_keep=1)
    assert [states.shape for states in out.hidden_states] == [states.shape for states in bare.hidden_states]
    assert out.logits.shape == bare.logits.shape
    torch.testing.assert_close(last.logits[:, -1], out.logits[:, -1], atol=1e-3, rtol=1e-4)
    if name == "llava":  # a token that has left stays as it was
        entered, final = out.hidden_states[1], out.hidden_states[2]
        assert torch.equal(entered[left[1]], final[left[1]])


@pytest.mark.parametrize("name", FAMILIES)
def test_withdraw_is_a_word(name):
    tiny = build(name)
    inputs = tiny.prompt(*PROMPTS["several images"])
    with torch.no_grad():
        with withdraw(tiny.model, 2):
            expected = tiny.model(**inputs).logits
        with prune(tiny.model, "2:withdraw"):
            assert torch.equal(tiny.model(**inputs).logits, expected)


def test_layers_that_do_not_attend_cannot_rank():
    if "lfm2_vl" not in FAMILIES:
        pytest.skip("this transformers has no such model")
    with pytest.raises(UserError, match=r"the layer before layer 1, and in Lfm2Vl.* that one doesn't attend"):
        prune(build("lfm2_vl").model, "1:fastv:0.5").__enter__()


@pytest.mark.parametrize(
    "recipe",
    ["0:uniform_grid:0.5;3:withdraw", "1:uniform_grid:0.75;2:uniform_grid:0.25;3:withdraw", "2:fastv:0.5;3:withdraw"],
)
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in MASKED])
def test_a_recipe_where_masking_is_not_removing(name, recipe):
    tiny = build(name)
    if "fastv" in recipe and find_attention(find_decoder(tiny.model).layers[1]) is None:
        pytest.skip("nothing attends in layer 1")
    inputs = tiny.prompt(*PROMPTS["ragged batch"])
    left = left_by(tiny, inputs, recipe)
    kept = inputs["attention_mask"].bool() & ~left[3]
    with torch.no_grad():
        with kept_tokens_alone(tiny.model, left):
            expected = tiny.model(**inputs).logits[kept]
        with prune(tiny.model, recipe):
            logits = tiny.model(**inputs).logits[kept]
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_keeping_all_changes_nothing(name):
    tiny = build(name)
    inputs = tiny.prompt(*PROMPTS["several images"])
    with torch.no_grad():
        expected = tiny.model(**inputs).logits
        with prune(tiny.model, "0:uniform_grid:1;1:fastv:1;2:random_tokens:1"):
            torch.testing.assert_close(tiny.model(**inputs).logits, expected, atol=1e-4, rtol=1e-4)


def test_a_cache_belongs_to_its_recipe(llava):
    inputs, following = llava.prompt(*PROMPTS["one image"]), torch.tensor([[5]])
    with torch.no_grad():
        with prune(llava.model, "1:fastv:0.5;3:withdraw"):
            cache = llava.model(**inputs, use_cache=True).past_key_values
        with prune(llava.model, "1:fastv:0.5"), pytest.raises(RuntimeError, match="withdrawal layer 1, 3, and is used"):
            llava.model(input_ids=following, past_key_values=cache)
        length = inputs["input_ids"].shape[1]
        second = {**inputs, "attention_mask": torch.ones(1, 2 * length)}
        with (
            prune(llava.model, "1:fastv:0.5;3:withdraw"),
            pytest.raises(UserError, match=f"this KV cache holds {length} tokens already"),
        ):
            llava.model(**second, past_key_values=cache)


def test_it_is_off_where_the_block_ends(llava):
    inputs = llava.prompt(*PROMPTS["one image"])
    before = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in llava.model.modules()]
    with torch.no_grad():
        expected = llava.model(**inputs).logits
        for recipe in RECIPES:
            with pytest.raises(KeyboardInterrupt), prune(llava.model, recipe):
                raise KeyboardInterrupt
            with prune(llava.model, recipe), pytest.raises(RuntimeError, match="active"):
                prune(llava.model, recipe).__enter__()
            assert torch.equal(llava.model(**inputs).logits, expected)
    after = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in llava.model.modules()]
    assert after == before


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("", r"'' is no step of a recipe: it must be layer:method:keep, where method is one of withdraw, fastv, pyr"),
        ("2:vtw", "'2:vtw' is no step of a recipe: it must be layer:method:keep"),
        ("2:fastv:0.5;16", "'16' is no step of a recipe: it must be"),
        ("two:fastv:0.5", "'two:fastv:0.5' is no step of a recipe: its layer must be a number from 0 on"),
        ("2:fastv", "'2:fastv' is no step of a recipe: write fastv as \"2:fastv:0.5\""),
        ("2:withdraw:0.5", "'2:withdraw:0.5' is no step of a recipe: write withdraw as \"2:withdraw\""),
        ("2:fastv:half", "'2:fastv:half' is no step of a recipe: the share to keep must be a number from 0 to 1"),
        ("2:fastv:1.5", "from 0 to 1; this is 1.5"),
        ("2:fastv:nan", "from 0 to 1; this is nan"),
        ("0:fastv:0.5", "layer of fastv must be from 1 to 3 in LlavaForConditionalGeneration; this is 0"),
        ("4:uniform_grid:0.5", "layer of uniform_grid must be from 0 to 3 in LlavaForConditionalGeneration; this is 4"),
        ("0:withdraw", "withdrawal layer must be from 1 to 4"),
        ("2:fastv:0.5;2:withdraw", "one at each; withdraw at layer 2 comes after fastv at layer 2"),
        ("3:withdraw;2:fastv:0.5", "one at each; fastv at layer 2 comes after withdraw at layer 3"),
        ("1:fastv:0.25;2:fastv:0.5", "fastv at layer 2 is to keep 0.5 of the visual tokens, and only 0.25 of them are"),
    ],
)
def test_recipes_that_mean_nothing_are_refused(llava, recipe, said):
    with pytest.raises(UserError, match=said):
        prune(llava.model, recipe).__enter__()


def test_recipes_are_written_as_they_are_read():
    for recipe in (*RECIPES, "8:random_tokens:0"):
        assert write_recipe(read_recipe(recipe)) == recipe
