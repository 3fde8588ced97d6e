"""Checkpoints that aren't what their configuration says, as trainers and converters leave them."""

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import saved_models
from tests.hub_server import ask_hub, hub_server
from vtw_demo import load
from vtw_demo.__main__ import main
from vtw_demo.page.html import header

HEAD = "language_model.lm_head.weight"
UP = "language_model.model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    saved_models.save("llava", folder, as_on_hub=True)
    return folder


@pytest.fixture
def folder(llava, tmp_path):
    """A copy, to be spoilt."""
    return shutil.copytree(llava, tmp_path / "model")


def rewrite(folder, change):
    """Replace the weights by what `change` makes of them."""
    file = folder / "model.safetensors"
    changed = {key: value.contiguous() for key, value in change(load_file(file)).items()}
    save_file(changed, file, metadata={"format": "pt"})


def configure(folder, name="config.json", **values):
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def prefixed(prefix):
    return lambda weights: {prefix + key: value for key, value in weights.items()}


def without(*parts):
    return lambda weights: {key: value for key, value in weights.items() if not any(part in key for part in parts)}


def cut(key, rows):
    return lambda weights: {**weights, key: weights[key][:rows]}


def with_adapter(weights):
    renamed = {key.replace("q_proj.", "q_proj.base_layer."): value for key, value in weights.items()}
    return {**renamed, "language_model.model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.zeros(2, 2)}


WRAPPER = "saved from a wrapper .*: save the model inside that"
WHOLE = r"Save the whole model again with save_pretrained\."


@pytest.mark.parametrize("quantization", [None, "4bit"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (prefixed("base_model.model."), rf"lm_head\.weight, .* and 79 more, .*base_model\.model\..*{WRAPPER}"),
        (prefixed("module."), WRAPPER),
        (prefixed("_orig_mod."), WRAPPER),
        (prefixed("teacher."), rf"others are there: teacher\.language_model.*{WHOLE}"),
        (with_adapter, "An adapter .* is beside its weights: .*merge_and_unload"),
        (without("lm_head"), rf"missing or misshapen: lm_head\.weight\. {WHOLE}"),
        (without("layers.3."), r"layers\.3\.input_layernorm\.weight, .* and 6 more\."),
        (without("multi_modal_projector", "vision_tower"), r"model\.multi_modal_projector\.linear_1\.bias"),
        (cut(UP, 8), r"layers\.1\.mlp\.up_proj\.weight \(of shape \(8, 32\), not \(48, 32\)\)\."),
        (cut(UP, 0), r"\(of shape \(0, 32\), not \(48, 32\)\)\. Some are empty, as ZeRO-3 and FSDP leave them: gather"),
        (cut(HEAD, 100), r"lm_head\.weight \(of shape \(100, 32\), not"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_anything_runs(folder, change, said, quantization):
    rewrite(folder, change)
    steps = []
    with pytest.raises(
        ValueError, match=f"can't be loaded: weights that its config.json asks for are .*{said}"
    ) as caught:
        load(str(folder), quantization, device="cpu", on_progress=lambda progress: steps.append(progress.step))
    assert "\n" not in str(caught.value)
    assert "warming up" not in steps


def test_another_version_of_transformers_is_named(folder):
    configure(folder, transformers_version="99.1.0")
    rewrite(folder, without("lm_head"))
    with pytest.raises(ValueError, match=r"again with save_pretrained, or try transformers 99\.1\.0, which saved it"):
        load(str(folder), device="cpu")


def test_a_head_that_is_tied_is_not_missed(folder):
    configure(folder, tie_word_embeddings=True)
    rewrite(folder, without("lm_head"))
    vlm = load(str(folder), device="cpu")
    assert vlm.model.get_output_embeddings().weight is vlm.model.get_input_embeddings().weight
    assert vlm.note == ""


@pytest.mark.parametrize("quantization", [None, "4bit"])
def test_further_weights_are_told_in_a_line(folder, caplog, quantization):
    rewrite(folder, lambda weights: weights | {f"value_head.{n}.weight": torch.zeros(2) for n in range(5)})
    with caplog.at_level(logging.WARNING):
        vlm = load(str(folder), quantization, device="cpu")
    said = "left out: value_head.0.weight, value_head.1.weight, value_head.2.weight and 2 more."
    (line,) = [record.getMessage() for record in caplog.records if "value_head" in record.getMessage()]
    assert line.endswith(said)
    assert "\n" not in line
    assert vlm.note.endswith(said)
    assert vlm.note in header(vlm)


def adapter(folder):
    """As PEFT saves one."""
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    written = {"peft_type": "LORA", "base_model_name_or_path": "llava-hf/llava-1.5-7b-hf"}
    (folder / "adapter_config.json").write_text(json.dumps(written))


def adapter_beside(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')


def shards(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    files = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def without_index(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")


def cut_short(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pointer(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def of_authors(folder):
    configure(folder, mm_vision_tower="openai/clip", architectures=["LlavaLlamaForCausalLM"])


def of_authors_pickled(folder):
    configure(folder, model_type="llava_llama", mm_vision_tower="openai/clip")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (adapter, r"is an adapter \(LoRA\), of 'llava-hf/llava-1.5-7b-hf': .* merge_and_unload"),
        (adapter_beside, "an adapter .* of 'some/base': .* If that is done already, remove its adapter_config.json"),
        (shards, "index.json names files that aren't there: model-00002-of-00002.safetensors. Get them"),
        (without_index, "not in safetensors .* with model.safetensors.index.json"),
        (cut_short, "model.safetensors is damaged or not whole .*Get it again"),
        (pointer, "model.safetensors is damaged or not whole .*git lfs pull"),
        (of_authors, "format of LLaVA's authors. Choose its conversion .*'llava-hf/llava-1.5-7b-hf', or convert it"),
        (of_authors_pickled, "format of LLaVA's authors"),
    ],
)
def test_files_that_are_no_checkpoint_are_refused(folder, spoil, said):
    spoil(folder)
    with pytest.raises(ValueError, match=said) as caught:
        load(str(folder), device="cpu")
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_an_adapter_of_the_hub_names_its_base_before_it_is_downloaded(folder, monkeypatch, tmp_path):
    adapter(folder)
    steps = []
    with hub_server({"some/adapter": folder}) as (address, _):
        ask_hub(monkeypatch, tmp_path / "hub", address)
        with pytest.raises(
            ValueError, match=r"'some/adapter' can't be loaded: it is an adapter .*'llava-hf/llava-1\.5"
        ):
            load("some/adapter", device="cpu", on_progress=lambda progress: steps.append(progress.step))
    assert steps == ["checking"]


@pytest.mark.parametrize("command", ["compare", "calibrate", "evaluate"])
def test_every_command_refuses_them(folder, command, tmp_path, capsys, picture, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rewrite(folder, without("lm_head"))
    picture.save(tmp_path / "picture.png")
    (tmp_path / "data.jsonl").write_text('{"image": "picture.png", "question": "What?", "answer": "red"}\n')
    asked = {
        "compare": ["--image", str(tmp_path / "picture.png"), "--question", "What?", "--layer", "2"],
        "calibrate": ["--data", str(tmp_path / "data.jsonl"), "--out", str(tmp_path / "out")],
        "evaluate": ["--data", str(tmp_path / "data.jsonl"), "--out", str(tmp_path / "out")],
    }
    assert main([command, "--model", str(folder), "--device", "cpu", *asked[command]]) == 2
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith(f"error: The model '{folder}' can't be loaded: weights that its config")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cache").exists()
