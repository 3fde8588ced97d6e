"""The peers against eager attention's own matrices, and FastV against blocking what it drops."""

import contextlib

import pytest
import torch
import transformers

from tests.families import LAYERS
from tests.oracles import attention_implementation, visual_keys_blocked
from tests.tiny_models import OPTIONS, PROMPTS, TinyModel, build, prompts_of
from vtw_demo.benchmark.baselines import Peer, full_attention_matrices, peers, snapkv
from vtw_demo.measurements.attention import measure_attention
from vtw_demo.withdrawal.attention_capture import captured_rows
from vtw_demo.withdrawal.fastv import fastv
from vtw_demo.withdrawal.segments import Segment, segment_ids, visual_token_mask
from vtw_demo.withdrawal.withdraw import withdraw

# A decoder of llama's, one with norms of its own and two dimensions of positions, one with sliding windows.
FAMILIES = ("llava", "qwen2_5_vl", "gemma3 (window shorter than the prompt)")
KVPRESS = 2
"""The place of kvpress among the peers."""


@pytest.fixture(scope="module")
def llava() -> TinyModel:
    tiny = build("llava")
    tiny.model.set_attn_implementation("sdpa")
    return tiny


def least_attended(model, inputs, share, layer):
    """Where the visual tokens are that get least of the last token's attention, from eager attention's full matrix."""
    config = model.get_decoder().config
    before = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        with torch.no_grad():
            matrix = model(**inputs, output_attentions=True).attentions[layer - 1]
    finally:
        config._attn_implementation = before
    visual = visual_token_mask(model.config, inputs["input_ids"])
    least = torch.zeros_like(visual)
    for row, weights in enumerate(matrix.mean(1)[:, -1]):
        ascending = sorted(visual[row].nonzero()[:, 0].tolist(), key=lambda position: weights[position].item())
        least[row, ascending[: int(share * len(ascending))]] = True
    return least


def check_against_oracle(tiny, inputs, share, layer):
    """Generate under FastV, and from the whole model in which layers from `layer` on don't see what FastV drops."""
    dropped = least_attended(tiny.model, inputs, share, layer)
    with visual_keys_blocked(tiny.model, layer, dropped):
        expected = tiny.model.generate(**inputs, **OPTIONS)
    with fastv(tiny.model, share, layer):
        out = tiny.model.generate(**inputs, **OPTIONS)
    assert torch.equal(out.sequences, expected.sequences)
    logits, expected_logits = torch.stack(out.logits), torch.stack(expected.logits)
    assert (logits - expected_logits).abs().max() < 1e-4 * expected_logits.std()
    return out, dropped


@pytest.mark.parametrize("layer", range(1, LAYERS))
@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in FAMILIES for kind in prompts_of(name)])
def test_fastv_equals_masking(name, kind, layer):
    tiny = build(name)
    check_against_oracle(tiny, tiny.prompt(*PROMPTS[kind]), 0.5, layer)


@pytest.mark.parametrize("share", [0.25, 0.6, 1.0])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_fastv_of_any_share(llava, share, attention):
    llava.model.set_attn_implementation(attention)
    try:
        out, dropped = check_against_oracle(llava, llava.prompt(*PROMPTS["several images"]), share, 2)
    finally:
        llava.model.set_attn_implementation("sdpa")
    assert dropped.sum() == int(share * 12)
    full, rest = out.sequences.shape[1] - 1, out.sequences.shape[1] - 1 - int(share * 12)
    assert [layer.keys.shape[-2] for layer in out.past_key_values.layers] == [full, full, rest, rest]


def test_fastv_of_share_0_changes_nothing(llava):
    inputs = llava.prompt(*PROMPTS["one image"])
    expected = llava.model.generate(**inputs, **OPTIONS)
    with fastv(llava.model, share=0):
        out = llava.model.generate(**inputs, **OPTIONS)
    assert torch.equal(out.sequences, expected.sequences)
    assert torch.equal(torch.stack(out.logits), torch.stack(expected.logits))
    assert len({layer.keys.shape for layer in out.past_key_values.layers}) == 1


def test_fastv_of_share_1_is_withdrawal(llava):
    inputs = llava.prompt(*PROMPTS["ragged batch"])
    with torch.no_grad(), withdraw(llava.model, layer=2):
        expected = llava.model(**inputs).logits
    with torch.no_grad(), fastv(llava.model, share=1, layer=2):
        logits = llava.model(**inputs).logits
    torch.testing.assert_close(logits, expected)


def test_fastv_leaves_the_model_as_it_was(llava):
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
        ("llava", {"share": 1.1}, "from 0 to 1; this is 1.1"),
        ("llava", {"share": -0.1}, "from 0 to 1; this is -0.1"),
        ("llava", {"layer": 0}, "from 1 to 3 in LlavaForConditionalGeneration; this is 0"),
        ("llava", {"layer": LAYERS}, f"from 1 to 3 in LlavaForConditionalGeneration; this is {LAYERS}"),
        ("qwen3_vl", {}, "adds visual features between decoder layers"),
        ("gemma3n", {}, "shares keys between decoder layers"),
        ("llama4", {}, "scales attention by position"),
    ],
)
def test_fastv_refuses(name, options, said):
    with pytest.raises(ValueError, match=said), fastv(build(name).model, **options):
        pass


def test_fastv_refuses_attention_that_it_does_not_know(llava):
    with (
        attention_implementation(llava.model, "another", lambda: None, lambda: None),
        pytest.raises(ValueError, match="sdpa or eager attention; that of LlavaForConditionalGeneration is another"),
        fastv(llava.model),
    ):
        pass


def test_fastv_refuses_prompts(llava):
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


def test_fastv_and_withdrawal_exclude_each_other(llava):
    with withdraw(llava.model, layer=1), pytest.raises(RuntimeError, match="active"), fastv(llava.model):
        pass


@pytest.mark.parametrize("kind", ["one image", "several images"])
def test_full_matrices_are_those_whose_rows_and_mass_are_measured(llava, kind):
    inputs = llava.prompt(*PROMPTS[kind])
    length = inputs["input_ids"].shape[1]
    rows = []
    with torch.no_grad(), captured_rows(llava.model, length, lambda index, weights: rows.append(weights)):
        llava.model(**inputs)
    with torch.no_grad(), full_attention_matrices(llava.model):
        matrices = llava.model(**inputs).attentions
    heads = llava.model.config.text_config.num_attention_heads
    assert [matrix.shape for matrix in matrices] == [(1, heads, length, length)] * LAYERS
    means = torch.stack(matrices).mean(2)
    torch.testing.assert_close(means, torch.stack(rows))
    segments = segment_ids(llava.model.config, inputs["input_ids"])[0]
    mass = [[row[segments == part.number].sum() for part in Segment] for row in means[:, 0, -1]]
    measured = torch.tensor(measure_attention(llava.model, inputs).last_prompt)
    torch.testing.assert_close(measured, torch.tensor(mass))


def test_full_matrices_are_kept_while_generating_and_no_longer(llava):
    inputs, shapes = llava.prompt(*PROMPTS["one image"]), []
    length = inputs["input_ids"].shape[1]
    before = hooks(llava.model)
    expected = llava.model.generate(**inputs, **OPTIONS)

    def note(module, args, output):
        shapes.append(None if output.attentions is None else [matrix.shape[-2:] for matrix in output.attentions])

    handle = llava.model.register_forward_hook(note)
    try:
        with contextlib.suppress(KeyboardInterrupt), full_attention_matrices(llava.model):
            out = llava.model.generate(**inputs, **OPTIONS)
            raise KeyboardInterrupt
        assert shapes == [[(length, length)] * LAYERS, *([(1, length + step)] * LAYERS for step in (1, 2, 3))]
        assert torch.equal(out.sequences, expected.sequences)
        shapes.clear()
        llava.model(**inputs)
        assert shapes == [None]
    finally:
        handle.remove()
    assert hooks(llava.model) == before
    assert llava.model.get_decoder().config._attn_implementation == "sdpa"


def test_every_available_peer_answers_again_and_again(llava):
    inputs = llava.prompt([1, 2, *["image"] * 24, 3, 4, 5])
    bare = llava.model.generate(**inputs, **OPTIONS)
    found = peers(llava.model)
    assert [peer.name.split(",")[0] for peer in found] == ["full attention matrices", "FastV", "kvpress"]
    for peer in found:
        assert peer.note.endswith(".")
        for _ in range(2 if peer.context else 0):
            with torch.inference_mode(), peer.context(llava.model):
                out = llava.model.generate(**inputs, **OPTIONS)
            assert out.sequences.shape == bare.sequences.shape
    after = llava.model.generate(**inputs, **OPTIONS)
    assert torch.equal(torch.stack(after.logits), torch.stack(bare.logits))


def test_a_peer_that_a_model_refuses_says_why():
    _, pruning, _ = peers(build("qwen3_vl").model)
    assert pruning.context is None
    assert "adds visual features between decoder layers" in pruning.note


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Makes a kvpress that asks for these versions of transformers look installed."""

    def install(specifier):
        folder = tmp_path / "kvpress-99.0.dist-info"
        folder.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: kvpress\nVersion: 99.0\nRequires-Dist: transformers{specifier}\n"
        (folder / "METADATA").write_text(metadata)
        monkeypatch.syspath_prepend(tmp_path)

    return install


def test_kvpress_for_other_versions_of_transformers_says_so(llava, installed):
    installed("<5.3,>=4.56")
    press: Peer = peers(llava.model)[KVPRESS]
    assert press.context is not None
    assert "kvpress 99.0 asks for transformers<5.3,>=4.56" in press.note
    assert transformers.__version__ in press.note


def test_kvpress_for_this_version_of_transformers_is_available(llava, installed):
    installed(f"=={transformers.__version__}")
    assert peers(llava.model)[KVPRESS].context is snapkv


def test_kvpress_drops_keys_in_all_layers(llava):
    press: Peer = peers(llava.model)[KVPRESS]
    if press.context is None:
        pytest.skip(press.note)
    inputs = llava.prompt([1, 2, *["image"] * 24, 3, 4, 5])
    names = [name for name, _ in llava.model.named_modules()]
    with torch.inference_mode(), press.context(llava.model):
        cache = llava.model.generate(**inputs, **OPTIONS).past_key_values
    kept = inputs["input_ids"].shape[1] // 2
    assert [layer.keys.shape[-2] for layer in cache.layers] == [kept + OPTIONS["max_new_tokens"] - 1] * LAYERS
    assert [name for name, _ in llava.model.named_modules()] == names
