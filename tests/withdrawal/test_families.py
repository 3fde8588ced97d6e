"""Withdrawal is exact for every family: each is compared with the oracle, which removes nothing."""

import pytest
import torch
import transformers as hf
from packaging.version import Version

from tests.families import BRANCHES, FAMILIES, LAYERS, SPECIAL, TEXT
from tests.further_families import REFUSED
from tests.grids import nightly_but
from tests.oracles import flash_attention_stand_in, kept_tokens_alone, visual_keys_blocked
from tests.tiny_models import OPTIONS, PROMPTS, TinyModel, build, compare, oracle, prompts_of
from vtw_demo.withdrawal.segments import visual_token_mask
from vtw_demo.withdrawal.withdraw import withdraw

A_FAMILY_FOR_EACH_BRANCH = nightly_but(BRANCHES, FAMILIES)

WAYS = {
    "eager": {},
    "sampling": {"do_sample": True},
    "beams": {"num_beams": 3},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "chunked prefill": {"prefill_chunk_size": 5},
}


def tiny_model(family, attention="sdpa"):
    tiny = build(family)
    tiny.model.set_attn_implementation(attention)
    return tiny


def check_cache(comparison, layer):
    """Layers below K hold what they ever hold, layers from K on hold what the oracle has for text."""
    visual, attended = comparison.visual, comparison.inputs["attention_mask"].bool()
    decoded = torch.ones(len(visual), OPTIONS["max_new_tokens"] - 1, dtype=torch.bool)
    attended = torch.cat([attended, decoded], dim=1)
    text = attended & ~torch.cat([visual, ~decoded], dim=1)
    layers = zip(comparison.out.past_key_values.layers, comparison.expected.past_key_values.layers, strict=True)
    for index, (actual, wanted) in enumerate(layers):
        if wanted.keys is None:  # it uses the keys and values of another layer
            continue
        held = wanted.keys.shape[-2]
        if index >= layer and visual.any():
            kept = int(text.sum(1).max())
            assert actual.keys.shape[-2] == (min(kept, held) if wanted.is_sliding else kept)
        else:
            assert actual.keys.shape[-2] == held
        for row in range(len(visual)):
            columns = (text if index >= layer else attended)[row, -held:]
            count = int(columns.sum())
            for name in ("keys", "values"):
                have, want = getattr(actual, name)[row], getattr(wanted, name)[row]
                torch.testing.assert_close(
                    have[:, have.shape[1] - count :] if index >= layer else have[:, columns],
                    want[:, columns],
                    atol=1e-4,
                    rtol=1e-4,
                )


@pytest.mark.parametrize("layer", [1, LAYERS // 2, LAYERS - 1])
@pytest.mark.parametrize(("family", "name"), [(family, name) for family in FAMILIES for name in prompts_of(family)])
def test_greedy(family, name, layer):
    comparison = compare(tiny_model(family), PROMPTS[name], layer)
    assert comparison.same_tokens
    assert comparison.error < 1e-4
    if FAMILIES[family].masks:  # else the oracle has no cache
        check_cache(comparison, layer)


TRANSFORMERS_CANNOT = {
    # Its picture features are in `last_hidden_state`, which `generate` neither repeats nor splits.
    ("llama4", "beams"),
    ("llama4", "chunked prefill"),
}
# Recurrent layers refuse what parts a prompt within a picture; see below.
TRANSFORMERS_CANNOT |= {(family, "chunked prefill") for family in FAMILIES if not FAMILIES[family].masks}
if Version(hf.__version__) < Version("5.18"):
    TRANSFORMERS_CANNOT.add(("llama4", "static cache"))
    del WAYS["chunked prefill"]  # with pictures it fails by itself, or gives another answer


@pytest.mark.parametrize(
    ("family", "way"),
    nightly_but(
        [(family, way) for family in BRANCHES for way in WAYS],
        [(family, way) for family in FAMILIES for way in WAYS if (family, way) not in TRANSFORMERS_CANNOT],
    ),
)
def test_ways_of_generating(family, way):
    tiny = tiny_model(family, "eager" if way == "eager" else "sdpa")
    rows = [[1, "image", 2, 3], [4, "image", 5, 6, 7, 8]] if way == "beams" else PROMPTS["ragged batch"]
    comparison = compare(tiny, rows, 2, **WAYS[way])
    assert comparison.same_tokens
    assert comparison.error < 1e-4


@pytest.mark.parametrize("family", ["llava", "cohere2_vision", "qwen2_vl", "qwen3_vl"])
def test_both_oracles_agree(family):
    """Where a token that nothing attends to is one that is gone."""
    tiny = tiny_model(family)
    inputs = tiny.prompt(*PROMPTS["ragged batch"])
    visual = visual_token_mask(tiny.model.config, inputs["input_ids"])
    text = inputs["attention_mask"].bool() & ~visual
    with torch.no_grad():
        with visual_keys_blocked(tiny.model, 2, visual):
            expected = tiny.model(**inputs).logits[text]
        with kept_tokens_alone(tiny.model, {2: visual}):
            torch.testing.assert_close(tiny.model(**inputs).logits[text], expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("family", A_FAMILY_FOR_EACH_BRANCH)
def test_forward(family, use_cache):
    """Logits, loss and hidden states have the shapes that they have without withdrawal."""
    tiny = tiny_model(family)
    inputs = tiny.prompt(*PROMPTS["ragged batch"])
    visual = visual_token_mask(tiny.model.config, inputs["input_ids"])
    text = inputs["attention_mask"].bool() & ~visual
    labels = inputs["input_ids"].masked_fill(~text | (inputs["input_ids"] >= min(SPECIAL)), -100)
    labels[:, 1:][~text[:, :-1]] = -100  # the oracle knows nothing of what visual tokens predict
    options = {"labels": labels, "use_cache": use_cache, "output_hidden_states": True}
    with torch.no_grad():
        with oracle(tiny, 2, visual):
            expected = tiny.model(**inputs, **options)
        with withdraw(tiny.model, layer=2):
            out = tiny.model(**inputs, **options)
            without_hidden_states = tiny.model(**inputs, use_cache=use_cache)
    if Version(hf.__version__) >= Version("5.10"):  # 5.0 records them before they are restored
        assert [states.shape for states in out.hidden_states] == [states.shape for states in expected.hidden_states]
    assert out.logits.shape == expected.logits.shape
    scale = expected.logits[text].std()
    assert (out.logits - expected.logits)[text].abs().max() < 1e-4 * scale
    assert (out.logits - without_hidden_states.logits).abs().max() < 1e-4 * scale
    torch.testing.assert_close(out.loss, expected.loss, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", ["image last", "image and text alone"])
@pytest.mark.parametrize("layer", [1, LAYERS - 1])
@pytest.mark.parametrize("family", A_FAMILY_FOR_EACH_BRANCH)
def test_logits_to_keep(family, layer, case):
    """The last logits are the same whether all are asked for or only these, of a withdrawn position too."""
    tiny = tiny_model(family, "eager")  # with sdpa's masks of None, gemma4 computes more than it reads
    inputs = tiny.prompt([1, "image", 2])
    visual = visual_token_mask(tiny.model.config, inputs["input_ids"])[0].nonzero()
    # Without what `prompt` puts round an image.
    columns = slice(0, visual.max() + 1) if case == "image last" else slice(visual.min(), None)
    for name, value in inputs.items():
        if name in ("input_ids", "attention_mask", tiny.family.token_types):
            inputs[name] = value[:, columns]
    text_count = inputs["input_ids"].shape[1] - len(visual)
    with torch.no_grad(), withdraw(tiny.model, layer=layer):
        expected = tiny.model(**inputs).logits
        for count in (1, text_count):
            logits = tiny.model(**inputs, logits_to_keep=count).logits
            torch.testing.assert_close(logits, expected[:, -count:], atol=1e-3, rtol=1e-4)


def test_attention_in_both_directions_without_a_mask():
    """Without token types, sdpa gives paligemma no mask, and its attention goes both ways."""
    tiny = tiny_model("paligemma")
    rows = [[1, "image", 2, 3], [4, 5, 6, 7, 8, 9, 10]]
    with torch.no_grad(), withdraw(tiny.model, layer=1):
        inputs = tiny.prompt(*rows)
        del inputs["token_type_ids"]
        together = tiny.model(**inputs).logits
        for row, logits in zip(rows, together, strict=True):
            inputs = tiny.prompt(row)
            del inputs["token_type_ids"]
            torch.testing.assert_close(tiny.model(**inputs).logits[0], logits, atol=1e-3, rtol=1e-4)


def decode_by_hand(model, inputs, steps):
    """Greedy decoding that leaves all counting to the model and its cache: the logits of each step."""
    logits = []
    out = model(**inputs, use_cache=True)
    for _ in range(steps):
        logits.append(out.logits[:, -1])
        following = out.logits[:, -1:, : min(SPECIAL)].argmax(-1)
        out = model(input_ids=following, past_key_values=out.past_key_values)
    return torch.stack(logits)


@pytest.mark.parametrize("family", A_FAMILY_FOR_EACH_BRANCH)
def test_decoding_by_hand(family):
    tiny = tiny_model(family)
    inputs = tiny.prompt(*PROMPTS["several images"])
    visual = visual_token_mask(tiny.model.config, inputs["input_ids"])
    with torch.no_grad():
        if tiny.family.masks:
            with visual_keys_blocked(tiny.model, 1, visual):
                expected = decode_by_hand(tiny.model, inputs, 3)
        else:
            expected = torch.stack(compare(tiny, PROMPTS["several images"], 1, max_new_tokens=3).expected.logits)
        with withdraw(tiny.model, layer=1):
            logits = decode_by_hand(tiny.model, inputs, 3)
    assert (logits - expected).abs().max() < 1e-4 * expected.std()


@pytest.mark.parametrize("family", A_FAMILY_FOR_EACH_BRANCH)
def test_several_calls_in_one_context(family):
    """Prompts of other lengths, with images and without, in one context: none leaves a trace in the next."""
    tiny = tiny_model(family)
    order = ["several images", "no image", "image first", "several images"]
    alone = [compare(tiny, PROMPTS[name], 2).out.sequences for name in order]
    options = OPTIONS | {"output_logits": False, "return_dict_in_generate": False}
    with withdraw(tiny.model, layer=2):
        for name, expected in zip(order, alone, strict=True):
            assert torch.equal(tiny.model.generate(**tiny.prompt(*PROMPTS[name]), **options), expected)


@pytest.mark.parametrize("family", A_FAMILY_FOR_EACH_BRANCH)
def test_bfloat16(family):
    """Seven bits of precision are few, but what is wrong is wrong by half a standard deviation or more."""
    comparison = compare(build(family, torch.bfloat16), PROMPTS["ragged batch"], 2, max_new_tokens=1)
    logits, expected = comparison.out.logits[0].float(), comparison.expected.logits[0].float()
    assert (logits - expected).abs().mean() < 0.08 * expected.std()


def test_4_bits(tmp_path):
    pytest.importorskip("bitsandbytes")
    family = tiny_model("llava")
    family.model.save_pretrained(tmp_path)
    quantization = hf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = hf.LlavaForConditionalGeneration.from_pretrained(tmp_path, quantization_config=quantization)
    assert type(model.model.language_model.layers[-1].mlp.up_proj).__name__ == "Linear4bit"
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            # Else bitsandbytes packs weights in blocks, on newer processors, and these are smaller than one.
            module.support_avx512bf16_for_cpu = False
    tiny = TinyModel(family.family, model.eval(), family.counts)
    comparison = compare(tiny, PROMPTS["ragged batch"], 2)
    assert comparison.same_tokens
    assert comparison.error < 1e-4


def test_models_whose_decoder_is_handed_other_tokens_are_refused():
    """As where a model drops some of its visual tokens itself, and nobody knows which."""
    tiny = tiny_model("llava")
    decoder = tiny.model.model.language_model
    handle = decoder.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {"inputs_embeds": kwargs["inputs_embeds"][:, 2:]}), with_kwargs=True
    )
    try:
        with (
            withdraw(tiny.model, 2),
            pytest.raises(RuntimeError, match="7 tokens entered decoder layer 2 of this Llava"),
        ):
            tiny.model(**tiny.prompt(*PROMPTS["one image"]))
    finally:
        handle.remove()


def test_sounds_stay():
    """In a model of sounds and pictures, only what shows pictures leaves."""
    tiny = build("dots3_note")
    model = tiny.model
    sounds = {"input_features": torch.randn(1, 8, 32), "chunk_sample_lengths": torch.tensor([32 * 160])}
    with torch.no_grad():
        count = len(model.model.get_audio_features(**sounds).pooler_output)
    inputs = tiny.prompt([1, "image", 2, *[model.config.audio_token_id] * count, 3]) | sounds
    kept = count + 3
    with torch.no_grad():
        with withdraw(model, 2):
            out = model(**inputs, use_cache=True)
        assert [layer.keys.shape[2] for layer in out.past_key_values.layers[:4:2]] == [
            kept + tiny.counts["image"],
            kept,
        ]
        with oracle(tiny, 2, visual_token_mask(model.config, inputs["input_ids"])):
            expected = model(**inputs).logits[0, -1]
    torch.testing.assert_close(out.logits[0, -1], expected, atol=1e-4, rtol=1e-4)


OF_FULL_SIZE = ("qwen2_5_omni", "qwen3_omni_moe", "glm5_next", "minimax_m3_vl", "inkling", "unlimited_ocr")


@pytest.mark.parametrize(
    "name",
    nightly_but(
        [name for name in REFUSED if name not in OF_FULL_SIZE],
        [name for name, (model, *_) in REFUSED.items() if hasattr(hf, model)],
    ),
)
def test_families_in_which_it_cannot_mean_anything(name):
    class_name, config, reason = REFUSED[name]
    with torch.device("meta"):
        model = getattr(hf, class_name)(config())
    message = rf"{class_name} can't be used with withdraw: .*{reason}"
    with pytest.raises(ValueError, match=message), withdraw(model, layer=1):
        pass


@pytest.mark.skipif("lfm2_vl" not in FAMILIES, reason="this transformers has no such model")
class TestRecurrentLayers:
    """lfm2_vl, whose last layer is a convolution: at K = 3 no layer attends to kept tokens alone."""

    def test_a_part_of_a_prompt_without_text_is_refused(self):
        """The convolution would see a gap."""
        tiny = tiny_model("lfm2_vl")
        with (
            withdraw(tiny.model, 2),
            pytest.raises(RuntimeError, match="change what a Lfm2DecoderLayer remembers"),
        ):
            tiny.model.generate(**tiny.prompt(*PROMPTS["several images"]), prefill_chunk_size=3)

    @pytest.mark.parametrize("length", [1, 2])
    def test_a_state_is_of_use_in_its_own_block_only(self, length):
        tiny, following = tiny_model("lfm2_vl"), torch.tensor([[5, 6]])
        with torch.no_grad(), withdraw(tiny.model, 3):
            cache = tiny.model(**tiny.prompt(*PROMPTS["one image"]), use_cache=True).past_key_values
            cache = tiny.model(input_ids=following[:, :1], past_key_values=cache).past_key_values
        with torch.no_grad():
            with pytest.raises(RuntimeError, match="the block has been left since"):
                tiny.model(input_ids=following[:, :length], past_key_values=cache)
            with withdraw(tiny.model, 2), pytest.raises(RuntimeError, match="filled with withdrawal layer 3"):
                tiny.model(input_ids=following[:, :length], past_key_values=cache)
            cache.reset()
            expected = tiny.model(input_ids=following).logits
            torch.testing.assert_close(tiny.model(input_ids=following, past_key_values=cache).logits, expected)


@pytest.mark.parametrize("shared", [{"kv_source_layers": [0, 1, 2, 1]}, {"indexer_types": ["full", "shared"] * 2}])
def test_indexers_that_share_are_refused(shared):
    if "mistral_large4" not in FAMILIES:
        pytest.skip("this transformers has no such model")
    config = FAMILIES["mistral_large4"].config().to_dict()
    config["text_config"] |= shared
    with torch.device("meta"):
        model = hf.MistralLarge4ForConditionalGeneration(hf.MistralLarge4Config(**config))
    with pytest.raises(ValueError, match="layers share what an indexer has chosen"), withdraw(model, layer=1):
        pass


def test_model_without_placeholders():
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT))
    with pytest.raises(ValueError, match="LlamaConfig names no placeholder token"), withdraw(model, layer=1):
        pass


def test_forward_passes_that_are_not_understood():
    tiny = tiny_model("llava")
    inputs = tiny.prompt(*PROMPTS["one image"])
    length = inputs["input_ids"].shape[1]
    with withdraw(tiny.model, layer=2):
        with pytest.raises(RuntimeError, match=rf"argument strange of LlamaDecoderLayer, of shape \(3, {length}"):
            tiny.model(**inputs, strange=torch.zeros(3, length))
        with pytest.raises(RuntimeError, match="ran outside of the model's own forward pass"):
            tiny.model.model.language_model(inputs["input_ids"])
        with pytest.raises(ValueError, match=r"none of its tokens is one of the placeholders \(99,\)"):
            tiny.model(input_ids=inputs["input_ids"] % 50, pixel_values=inputs["pixel_values"])


def test_flash_attention_with_a_sliding_window():
    """Its window slides among the kept tokens: right while it is longer than the prompt, else refused."""
    tiny = tiny_model("pixtral (in llava)")
    assert tiny.model.config.text_config.sliding_window == 4096
    comparison = compare(tiny, PROMPTS["ragged batch"], 2)
    with flash_attention_stand_in(tiny.model), withdraw(tiny.model, layer=2):
        out = tiny.model.generate(**comparison.inputs, **OPTIONS)
    assert torch.equal(out.sequences, comparison.expected.sequences)

    tiny = tiny_model("gemma3 (window shorter than the prompt)")
    inputs = tiny.prompt(*PROMPTS["several images"])
    refused = pytest.raises(RuntimeError, match="a sliding window of 8 tokens would be counted without")
    with flash_attention_stand_in(tiny.model), withdraw(tiny.model, layer=2), refused:
        tiny.model(**inputs)
