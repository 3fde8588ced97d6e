"""The peers against eager attention's own matrices."""

import contextlib
from functools import partial

import pytest
import torch
import transformers

from tests.families import LAYERS
from tests.tiny_models import OPTIONS, PROMPTS, TinyModel, build
from vtw_demo.benchmark.baselines import Peer, full_attention_matrices, peers, snapkv
from vtw_demo.benchmark.costs import measure_answers
from vtw_demo.measurements.attention import measure_attention
from vtw_demo.measurements.equal_flops import RIVALS
from vtw_demo.withdrawal.attention_capture import captured_rows
from vtw_demo.withdrawal.segments import Segment, segment_ids

KVPRESS = 5
"""The place of kvpress among the peers."""
LAYER = 3
SIZE = 5 + 24 * build("llava").counts["image"], 24 * build("llava").counts["image"], LAYER


@pytest.fixture(scope="module")
def llava() -> TinyModel:
    tiny = build("llava")
    tiny.model.set_attn_implementation("sdpa")
    return tiny


def hooks(model):
    return [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]


@pytest.mark.parametrize("kind", ["one image", "several images"])
def test_full_matrices_are_those_whose_rows_and_mass_are_measured(llava, kind):
    inputs = llava.prompt(*PROMPTS[kind])
    length = inputs["input_ids"].shape[1]
    rows = []
    with torch.no_grad(), captured_rows(llava.model, length, lambda index, heads, value: rows.append(heads.mean(1))):
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
    with full_attention_matrices(llava.model):
        llava.model(**inputs)  # transformers leaves hooks of its own where it first hands matrices over
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
    found = peers(llava.model, *SIZE)
    assert [peer.name.split(",")[0] for peer in found] == ["full attention matrices", *RIVALS, "kvpress"]
    for peer in found:
        assert peer.note.endswith(".")
        for _ in range(2 if peer.context else 0):
            with torch.inference_mode(), peer.context(llava.model):
                out = llava.model.generate(**inputs, **OPTIONS)
            assert out.sequences.shape == bare.sequences.shape
    after = llava.model.generate(**inputs, **OPTIONS)
    assert torch.equal(torch.stack(after.logits), torch.stack(bare.logits))


def test_rivals_take_as_many_flops_as_withdrawal(llava):
    inputs = llava.prompt([1, 2, *["image"] * 24, 3, 4, 5])
    found = [peer for peer in peers(llava.model, *SIZE) if peer.schedule is not None]
    contexts = {peer.name: partial(peer.context, llava.model) for peer in found}
    schedules = {peer.name: peer.schedule for peer in found}
    _, withdrawn, *rivals = measure_answers(llava.model, inputs, [LAYER], 2, 1, contexts, schedules)
    assert len(rivals) == len(RIVALS)
    for rival in rivals:
        assert rival.flops_left == pytest.approx(withdrawn.flops_left, abs=0.01)
        assert rival.kv_cache_bytes < 1.2 * withdrawn.kv_cache_bytes


def test_a_peer_that_a_model_refuses_says_why():
    _, pruning, *_ = peers(build("llava").model, *SIZE[:2], 1)
    assert pruning.context is None
    assert "can't save as much as withdrawal at K = 1" in pruning.note


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
    press: Peer = peers(llava.model, *SIZE)[KVPRESS]
    assert press.context is not None
    assert "kvpress 99.0 asks for transformers<5.3,>=4.56" in press.note
    assert transformers.__version__ in press.note


def test_kvpress_for_this_version_of_transformers_is_available(llava, installed):
    installed(f"=={transformers.__version__}")
    assert peers(llava.model, *SIZE)[KVPRESS].context is snapkv


def test_kvpress_drops_keys_in_all_layers(llava):
    press: Peer = peers(llava.model, *SIZE)[KVPRESS]
    if press.context is None:
        pytest.skip(press.note)
    inputs = llava.prompt([1, 2, *["image"] * 24, 3, 4, 5])
    names = [name for name, _ in llava.model.named_modules()]
    with torch.inference_mode(), press.context(llava.model):
        cache = llava.model.generate(**inputs, **OPTIONS).past_key_values
    kept = inputs["input_ids"].shape[1] // 2
    assert [layer.keys.shape[-2] for layer in cache.layers] == [kept + OPTIONS["max_new_tokens"] - 1] * LAYERS
    assert [name for name, _ in llava.model.named_modules()] == names
