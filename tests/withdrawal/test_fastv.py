"""FastV against blocking what it drops."""

import pytest
import torch

from tests.families import LAYERS
from tests.oracles import attention_implementation
from tests.recipes import check_recipe
from tests.tiny_models import OPTIONS, PROMPTS, TinyModel, build, prompts_of
from vtw_demo import fastv, measure_attention, withdraw

# A decoder of llama's, one with norms of its own and two dimensions of positions, one with sliding windows.
FAMILIES = ("llava", "qwen2_5_vl", "gemma3 (window shorter than the prompt)")


@pytest.fixture(scope="module")
def llava() -> TinyModel:
    tiny = build("llava")
    tiny.model.set_attn_implementation("sdpa")
    return tiny


@pytest.mark.parametrize("layer", range(1, LAYERS))
@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in FAMILIES for kind in prompts_of(name)])
def test_fastv_equals_masking(name, kind, layer):
    tiny = build(name)
    check_recipe(tiny, tiny.prompt(*PROMPTS[kind]), f"{layer}:fastv:0.5")


@pytest.mark.parametrize("keep", [0.75, 0.4, 0.0])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_any_share(llava, keep, attention):
    llava.model.set_attn_implementation(attention)
    try:
        out, left = check_recipe(llava, llava.prompt(*PROMPTS["several images"]), f"2:fastv:{keep}")
    finally:
        llava.model.set_attn_implementation("sdpa")
    assert left[2].sum() == 12 - round(keep * 12)
    full, rest = out.sequences.shape[1] - 1, out.sequences.shape[1] - 1 - int(left[2].sum())
    assert [layer.keys.shape[-2] for layer in out.past_key_values.layers] == [full, full, rest, rest]


def test_keeping_all_changes_nothing(llava):
    inputs = llava.prompt(*PROMPTS["one image"])
    expected = llava.model.generate(**inputs, **OPTIONS)
    with fastv(llava.model, keep=1):
        out = llava.model.generate(**inputs, **OPTIONS)
    assert torch.equal(out.sequences, expected.sequences)
    assert torch.equal(torch.stack(out.logits), torch.stack(expected.logits))
    assert len({layer.keys.shape for layer in out.past_key_values.layers}) == 1


def test_keeping_none_is_withdrawal(llava):
    inputs = llava.prompt(*PROMPTS["ragged batch"])
    with torch.no_grad(), withdraw(llava.model, layer=2):
        expected = llava.model(**inputs).logits
    with torch.no_grad(), fastv(llava.model, layer=2, keep=0):
        logits = llava.model(**inputs).logits
    torch.testing.assert_close(logits, expected)


def test_it_leaves_the_model_as_it_was(llava):
    inputs = llava.prompt(*PROMPTS["one image"])
    expected = llava.model.generate(**inputs, **OPTIONS)
    before = hooks(llava.model)

    def fail(*_):
        raise KeyboardInterrupt

    # In the layer whose attention is ranked, while it is being captured.
    handle = llava.model.get_decoder().layers[1].mlp.register_forward_hook(fail)
    try:
        with pytest.raises(KeyboardInterrupt), fastv(llava.model):
            llava.model(**inputs)
    finally:
        handle.remove()
    assert hooks(llava.model) == before
    assert llava.model.get_decoder().config._attn_implementation == "sdpa"
    out = llava.model.generate(**inputs, **OPTIONS)
    assert torch.equal(torch.stack(out.logits), torch.stack(expected.logits))
    with fastv(llava.model):
        llava.model.generate(**inputs, **OPTIONS)


def hooks(model):
    return [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("llava", {"keep": 1.1}, "from 0 to 1; this is 1.1"),
        ("llava", {"keep": -0.1}, "from 0 to 1; this is -0.1"),
        ("llava", {"layer": 0}, "from 1 to 3 in LlavaForConditionalGeneration; this is 0"),
        ("llava", {"layer": LAYERS}, f"from 1 to 3 in LlavaForConditionalGeneration; this is {LAYERS}"),
    ],
)
def test_it_refuses(name, options, said):
    with pytest.raises(ValueError, match=said), fastv(build(name).model, **options):
        pass


def test_it_refuses_attention_that_it_does_not_know(llava):
    with (
        attention_implementation(llava.model, "another", lambda: None, lambda: None),
        pytest.raises(ValueError, match="sdpa or eager attention; that of LlavaForConditionalGeneration is another"),
        fastv(llava.model),
    ):
        pass


def test_it_refuses_prompts(llava):
    ends_visual = llava.prompt([1, 2, "image"])
    padded_right = {**llava.prompt([1, "image", 2]), "attention_mask": torch.tensor([[1] * 5 + [0]])}
    inputs = llava.prompt(*PROMPTS["one image"])
    embeddings = llava.model.get_input_embeddings()(inputs["input_ids"])
    with torch.no_grad(), fastv(llava.model):
        with pytest.raises(ValueError, match="ends with a visual token"):
            llava.model(**ends_visual)
        with pytest.raises(ValueError, match="padded on the right"):
            llava.model(**padded_right)
        with pytest.raises(ValueError, match="has no input_ids"):
            llava.model(inputs_embeds=embeddings)
        cache = llava.model(**inputs).past_key_values
        second = {**inputs, "attention_mask": torch.ones(1, 2 * inputs["input_ids"].shape[1])}
        with pytest.raises(ValueError, match=f"holds {inputs['input_ids'].shape[1]} tokens already"):
            llava.model(**second, past_key_values=cache)


def test_attention_is_not_measured_inside(llava):
    inputs = llava.prompt(*PROMPTS["one image"])
    with fastv(llava.model), pytest.raises(RuntimeError, match="isn't known which of them are visual tokens"):
        measure_attention(llava.model, inputs)
    with fastv(llava.model):
        llava.model.generate(**inputs, **OPTIONS)
    assert measure_attention(llava.model, inputs).last_prompt


def test_a_share_for_each_row(llava):
    inputs = llava.prompt([1, "image", 2, 3], [4, "image", 5, 6])
    with torch.no_grad():
        with fastv(llava.model, 2, [0.25, 0.75]):
            logits = llava.model(**inputs).logits[:, -1]
        for row, keep in enumerate((0.25, 0.75)):
            with fastv(llava.model, 2, keep):
                torch.testing.assert_close(llava.model(**inputs).logits[row, -1], logits[row], atol=1e-5, rtol=1e-4)
        with fastv(llava.model, 2, [0.25]), pytest.raises(ValueError, match="there are 1 for 2 rows"):
            llava.model(**inputs)


def test_it_and_withdrawal_exclude_each_other(llava):
    with withdraw(llava.model, layer=1), pytest.raises(RuntimeError, match="active"), fastv(llava.model):
        pass
