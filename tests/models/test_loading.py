"""Each architecture of the registry: saved as on the hub, loaded in 4 bits, asked, compared, swept and measured."""

import gc
import json
import shutil
import threading
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests import saved_models
from tests.families import FAMILIES
from tests.hub_tokenizers import HUB_TOKENIZERS
from tests.models.test_video import write as write_clip
from tests.oracles import kept_tokens_alone, visual_keys_blocked
from vtw_demo import load, sweep, withdraw
from vtw_demo.__main__ import main
from vtw_demo.comparison.compare import compare
from vtw_demo.measurements.attention import measure_attention
from vtw_demo.models.loading import LoadProgress, ModelChoice, check_model
from vtw_demo.models.question import control_tokens
from vtw_demo.models.video import Clip, read_clip
from vtw_demo.withdrawal.segments import visual_token_mask

QUESTION = "What is on the left?"
LAYER, NEW_TOKENS = 2, 4
TAKE_CLIPS = ("video_llava", "qwen2_5_vl", "qwen3_vl", "qwen3_5")


@pytest.fixture(scope="module", autouse=True)
def without_bfloat16():
    """As on a CPU without its instructions, float32 beside the 4 bits: oracles agree to 1e-3 in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", dict)
        yield


@pytest.fixture(scope="module", params=HUB_TOKENIZERS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory):
    folder = tmp_path_factory.mktemp(name)
    saved_models.save(name, folder, as_on_hub=True)
    return folder


@pytest.fixture(scope="module")
def vlm(folder):
    return load(str(folder), "4bit", device="cpu")


def noise(size=(120, 70), seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def clip(frames):
    return Clip(tuple(noise(seed=number) for number in range(frames)), tuple(map(float, range(frames))), float(frames))


def shown_to(name):
    return [noise(), clip(8)] if name in TAKE_CLIPS else [noise()]


def test_the_decoder_is_quantized_and_nothing_else(name, vlm):
    saved, _ = saved_models.build(name, as_on_hub=True)
    inside = {id(module) for module in saved.get_decoder().layers.modules()}
    linear = {n for n, module in saved.named_modules() if isinstance(module, nn.Linear) and id(module) in inside}
    assert set(vlm.quantized_modules) == linear
    assert linear
    loaded = dict(vlm.model.named_parameters())
    for parameter, value in saved.named_parameters():
        if parameter.removesuffix(".weight") not in linear:
            assert torch.equal(loaded[parameter], value.to(vlm.model.dtype)), parameter
    some = vlm.model.get_submodule(vlm.quantized_modules[0]).weight
    assert (some.quant_type, some.quant_state.nested) == ("nf4", True)
    assert f"The {len(linear)} linear modules of the 4 decoder layers" in vlm.quantized
    assert vlm.precision == "4-bit"


def test_the_memory_that_is_foreseen_is_what_it_takes(folder, vlm):
    outlook = check_model(ModelChoice(str(folder), "4bit", "cpu"))
    foreseen = outlook.architecture.weight_bytes("4bit", vlm.model.dtype)
    assert foreseen == pytest.approx(vlm.memory_bytes, rel=0.03)
    assert outlook.architecture.layers == vlm.layers == 4


def test_a_prompt_is_what_transformers_makes_of_the_chat(vlm):
    content = [{"type": "image", "image": noise()}, {"type": "text", "text": QUESTION}]
    expected = vlm.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    inputs = vlm.prepare(noise(), QUESTION)
    assert inputs.keys() == expected.keys()
    for part, value in expected.items():
        assert torch.equal(inputs[part], value.to(inputs[part].dtype)), part


def test_what_is_typed_stays_text(vlm):
    controls = control_tokens(vlm.processor.tokenizer)
    assert len(controls) >= len(set(vlm.processor.tokenizer.all_special_ids))

    def found(question):
        return [i for i in vlm.prepare(noise(), question)["input_ids"][0].tolist() if i in controls]

    plain = found("ab")
    for token in [*controls.values(), "<|placeholder|>", vlm.processor.image_token, "<image>", "</s>", "<|im_end|>"]:
        for typed in (token, f"a{token}b", f"{token}{token} c", f"{token[:2]}{token}{token[2:]} c", f" {token}\n c"):
            assert found(typed + "d") == plain, typed


def test_withdrawing_gives_what_masking_gives(name, vlm):
    for shown in shown_to(name):
        inputs = vlm.prepare(shown, QUESTION)
        visual = visual_token_mask(vlm.model.config, inputs["input_ids"])
        assert vlm.visual_tokens(inputs) == visual.sum() > 0
        with torch.no_grad(), withdraw(vlm.model, LAYER):
            withdrawn = vlm.model(**inputs).logits[0, -1]
        expected = visual_keys_blocked(vlm.model, LAYER, visual)
        if not FAMILIES[name].masks:
            expected = kept_tokens_alone(vlm.model, {LAYER: visual})
        with torch.no_grad(), expected:
            masked = vlm.model(**inputs).logits[0, -1]
        torch.testing.assert_close(withdrawn, masked, atol=2e-3 * masked.std().item(), rtol=0)


def test_it_is_compared_swept_and_measured(name, vlm):
    for shown in shown_to(name):
        *_, comparison = compare(vlm, shown, QUESTION, LAYER, max_new_tokens=NEW_TOKENS)
        inputs = vlm.prepare(shown, QUESTION)
        length = inputs["input_ids"].shape[1]
        assert comparison.visual_tokens + comparison.text_tokens == length
        with withdraw(vlm.model, LAYER):
            expected = vlm.generate(**inputs, max_new_tokens=NEW_TOKENS)
        assert list(comparison.withdrawn.tokens) == expected[0, length:].tolist()
        assert comparison.withdrawn.kv_cache_bytes < comparison.full.kv_cache_bytes
        swept = sweep(vlm.model, inputs)
        with torch.no_grad():
            full = vlm.model(**inputs).logits[0, -1].double().log_softmax(-1)
            with withdraw(vlm.model, LAYER):
                withdrawn = vlm.model(**inputs).logits[0, -1].double().log_softmax(-1)
        divergence = (withdrawn.exp() * (withdrawn - full)).sum().item()
        assert swept.kl[0, swept.layers.index(LAYER)].item() == pytest.approx(divergence, abs=1e-3)
        mass = measure_attention(vlm.model, inputs, comparison.withdrawn.tokens, layer=LAYER)
        for index, shares in enumerate(mass.last_prompt):
            if shares is not None:
                assert sum(shares) == pytest.approx(1, abs=1e-4)
                assert (shares[2] == 0) == (index >= LAYER)
        assert mass.layers_without_attention == (2 if name == "qwen3_5" else 0)


def test_clips_are_taken_where_the_model_takes_them(name, vlm):
    if name in TAKE_CLIPS:
        assert vlm.sampling is not None
        fewer, more = (vlm.prepare(clip(count), QUESTION) for count in (4, 8))
        if not name.startswith("qwen3"):
            assert vlm.visual_tokens(more) == 2 * vlm.visual_tokens(fewer)
        else:
            # All frames share so many pixels; frames go in pairs.
            for inputs, pairs in ((fewer, 2), (more, 4)):
                grid = inputs["video_grid_thw"][0]
                assert grid[0] == pairs
                assert vlm.visual_tokens(inputs) == grid.prod() // 4
                assert 2 * grid.prod() * saved_models.PATCH**2 <= 112**2
    else:
        assert vlm.sampling is None
        with pytest.raises(ValueError, match="not about clips"):
            vlm.prepare(clip(4), QUESTION)


def test_a_clip_is_examined_as_a_picture_is(name, folder, vlm, tmp_path, monkeypatch):
    if name not in TAKE_CLIPS:
        return
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file, report, data = write_clip(tmp_path / "clip.mp4"), tmp_path / "out.html", tmp_path / "out.json"
    asked = ["compare", "--model", str(folder), "--quantization", "4bit", "--device", "cpu", "--image", str(file)]
    asked += ["--question", QUESTION, "--layer", str(LAYER), "--max-new-tokens", "3"]
    assert main([*asked, "--report", str(report), "--json", str(data)]) == 0
    written = json.loads(data.read_text())
    inputs = vlm.prepare(read_clip(file, vlm.sampling), QUESTION)
    assert written["comparison"]["visual_tokens"] == vlm.visual_tokens(inputs)
    with withdraw(vlm.model, LAYER):
        expected = vlm.generate(**inputs, max_new_tokens=3)[0, inputs["input_ids"].shape[1] :]
    assert written["comparison"]["withdrawn"]["tokens"] == expected.tolist()
    assert "Where in a clip each visual token lies isn't known" in written["patches"]["unknown"]
    # A blank clip in its place moves the text after it.
    assert max(map(max, written["migration"]["distance"])) > 0
    assert report.stat().st_size > 10_000


def test_a_batch_answers_as_alone(name, vlm):
    if name in TAKE_CLIPS:
        queries = [(clip(8), "Why?"), (clip(8), QUESTION)]
    else:
        queries = [(noise((60, 60)), "Why?"), (noise(seed=1), QUESTION)]
    batch = vlm.prepare_batch(queries)
    with torch.no_grad():
        together = vlm.model(**batch).logits[:, -1]
        for row, (shown, question) in enumerate(queries):
            alone = vlm.model(**vlm.prepare(shown, question)).logits[0, -1]
            torch.testing.assert_close(together[row], alone, atol=1e-3, rtol=1e-3)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    saved_models.save("llava", folder, as_on_hub=True)
    return folder


def test_loading_is_reported_from_the_first_to_the_last_weight(llava):
    said, on_model_thread = [], {}

    def report(progress):
        said.append(progress)
        on_model_thread[progress.step] = threading.current_thread().name.startswith("model")

    load(str(llava), device="cpu", on_progress=report)
    # Others' answers wait for what computes only.
    assert on_model_thread == {"checking": False, "reading weights": True, "warming up": True}
    steps = [progress.step for progress in said]
    assert steps == sorted(steps, key=["checking", "reading weights", "warming up"].index)
    assert set(steps) == {"checking", "reading weights", "warming up"}
    read = [progress for progress in said if progress.step == "reading weights" and progress.total]
    assert [progress.done for progress in read] == list(range(1, read[-1].total + 1))
    assert str(LoadProgress("a/b", "downloading", 10**9, 4 * 10**9)) == "Downloading a/b: 1.00 of 4.00 GB."


@pytest.mark.parametrize("quantize_all", [False, True])
def test_eight_bits_answer(llava, quantize_all):
    vlm = load(str(llava), "8bit", device="cpu", quantize_all=quantize_all)
    everywhere = any("vision" in module for module in vlm.quantized_modules)
    assert everywhere is quantize_all
    assert ("decoder layers" in vlm.quantized) is not quantize_all
    *_, comparison = compare(vlm, noise(), QUESTION, LAYER, max_new_tokens=2)
    assert comparison.precision == ("8-bit throughout" if quantize_all else "8-bit")


def tensors():
    """All that there are, by identity; other tests' are held meanwhile, so that none of them makes room for another."""
    gc.collect()
    return {id(thing): thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)}


def held_bytes(before):
    """Of the tensors that there were not before."""
    new = [tensor for identity, tensor in tensors().items() if identity not in before and tensor.device.type == "cpu"]
    storages = [tensor.untyped_storage() for tensor in new]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize("quantization", [None, "4bit", "8bit"])
def test_a_released_model_holds_nothing(llava, quantization):
    before = tensors()
    vlm = load(str(llava), quantization, device="cpu")
    taken = vlm.memory_bytes
    assert taken > 0
    assert held_bytes(before) > 0.9 * taken
    vlm.release()
    assert vlm.memory_bytes == 0
    assert held_bytes(before) < 0.02 * taken


def changed(llava, tmp_path, **changes):
    folder = tmp_path / "changed"
    shutil.copytree(llava, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | changes))
    return folder


def unknown(llava, tmp_path):
    return changed(llava, tmp_path, model_type="llava_of_tomorrow", auto_map={"AutoModel": "modeling.py"})


def text_only(llava, tmp_path):
    return changed(llava, tmp_path, model_type="llama")


def cross_attention(llava, tmp_path):
    return changed(llava, tmp_path, model_type="mllama", text_config={"num_hidden_layers": 4}, vision_config={})


def pickled(llava, tmp_path):
    folder = changed(llava, tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return folder


def damaged_config(llava, tmp_path):
    folder = changed(llava, tmp_path)
    (folder / "config.json").write_text("{")
    return folder


def cut_weights(llava, tmp_path):
    folder = changed(llava, tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    return folder


def no_tokenizer(llava, tmp_path):
    folder = changed(llava, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    return folder


def torchvision_alone(llava, tmp_path):
    """Its pictures are prepared by a class that there is for torchvision only."""
    folder = changed(llava, tmp_path)
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    settings["image_processor"] = {"image_processor_type": "Lfm2VlImageProcessor"}
    file.write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(
            torchvision_alone,
            "prepared with torchvision, which isn't installed: install the version of it that fits torch 2",
            marks=pytest.mark.skipif(find_spec("torchvision") is not None, reason="it is installed"),
        ),
        (
            unknown,
            "'llava_of_tomorrow', isn't known to transformers .* code of its own, which is never run here.*Choose",
        ),
        (text_only, "no vision-language model that answers in text. Choose"),
        (cross_attention, "cross-attention.* Choose another one"),
        (pickled, "not in safetensors.* Choose a version"),
        (damaged_config, "config.json is damaged. Choose"),
        (cut_weights, "can't be loaded: .* Choose"),
        (no_tokenizer, "can't be loaded: .* Choose"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_a_sentence(llava, tmp_path, make, said):
    folder = make(llava, tmp_path)
    with pytest.raises(ValueError, match=said) as caught:
        load(str(folder), device="cpu")
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_too_little_memory_is_known_before_anything_is_loaded(llava, monkeypatch):
    choice, in_four_bits = ModelChoice(str(llava), device="cpu"), ModelChoice(str(llava), "4bit", "cpu")
    whole, smaller = check_model(choice), check_model(in_four_bits).needed_bytes
    monkeypatch.setattr("vtw_demo.models.hardware.free_memory", lambda device: whole.needed_bytes - 1)
    with pytest.raises(ValueError, match=r"needs about .* GB of memory on cpu, and .* choose quantization 8bit"):
        check_model(choice)
    check_model(in_four_bits)
    check_model(choice, reclaimable=1)
    monkeypatch.setattr("vtw_demo.models.hardware.free_memory", lambda device: smaller - 1)
    with pytest.raises(ValueError, match="choose a smaller model"):
        check_model(in_four_bits)


def test_code_that_comes_with_a_model_is_not_run(llava, tmp_path):
    folder, ran = changed(llava, tmp_path, auto_map={"AutoConfig": "own.Own", "AutoModel": "own.Own"}), tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')")
    load(str(folder), device="cpu")
    assert not ran.exists()
