from dataclasses import replace

import pytest
import torch

from tests.hub_configs import CONFIGS
from tests.hub_server import NOBODY, ask_hub, hub_server
from vtw_demo.__main__ import main
from vtw_demo.models import command
from vtw_demo.models.hub import fetch, find_files
from vtw_demo.models.loading import ModelChoice
from vtw_demo.models.quantization import describe
from vtw_demo.models.registry import (
    DEFAULT_MODEL,
    EMBEDDED_LAYER,
    KNOWN_MODELS,
    StartingLayer,
    choose_model,
    find_known_model,
    from_environment,
    starting_layer,
)


def test_every_model_that_was_promised_is_known():
    titles = [model.title for model in KNOWN_MODELS]
    assert titles == [
        "LLaVA-1.5 7B", "LLaVA-1.5 13B", "LLaVA-NeXT 7B", "LLaVA-OneVision 0.5B", "LLaVA-OneVision 7B",
        "Qwen2.5-VL 3B", "Qwen2.5-VL 7B", "Qwen3-VL 2B", "Qwen3-VL 4B", "InternVL3 1B", "InternVL3 2B", "InternVL3 8B",
        "SmolVLM2 256M", "SmolVLM2 500M", "SmolVLM2 2.2B", "Gemma 3 4B", "Video-LLaVA 7B",
    ]  # fmt: skip
    assert len({model.name for model in KNOWN_MODELS}) == len(KNOWN_MODELS)


@pytest.mark.parametrize("model", KNOWN_MODELS, ids=lambda model: model.title)
def test_what_is_said_of_a_model_is_what_its_configuration_makes(model):
    architecture = describe(CONFIGS[model.name]())
    assert architecture.parameters == model.parameters
    assert architecture.layers == model.layers
    weights = architecture.weight_bytes("4bit", torch.bfloat16)
    assert weights == pytest.approx(model.memory_4bit, abs=1e6)


def test_the_layers_of_the_authors_are_theirs():
    by_authors = {model.title: model.layer for model in KNOWN_MODELS if model.layer_source == "authors' code"}
    # `--k=15` in their README, `k = 16` in their VideoLLaVA.
    assert by_authors == {"LLaVA-1.5 7B": 15, "Video-LLaVA 7B": 16}
    for model in KNOWN_MODELS:
        share = {"half of the layers": 0.5, "three quarters of the layers": 0.75}.get(model.layer_source)
        assert share is None or model.layer == round(share * model.layers)


def test_a_model_is_found_in_whatever_case():
    assert find_known_model("LLAVA-hf/llava-1.5-7b-hf").title == "LLaVA-1.5 7B"
    assert find_known_model("llava-hf/llava-1.5-7b") is None


def test_the_first_layer_is_the_registrys_if_the_model_is_the_one(vlm):
    assert starting_layer(vlm) == StartingLayer(EMBEDDED_LAYER, "its evaluation")
    three_quarters = StartingLayer(round(0.75 * vlm.layers), "three quarters of the layers")
    assert starting_layer(replace(vlm, name="a/b")) == three_quarters
    # A folder or a small model by that name is another one.
    assert starting_layer(replace(vlm, name="llava-hf/llava-1.5-7b-hf")) == three_quarters
    known = next(model for model in KNOWN_MODELS if model.layers == 32)

    class Known:
        name, layers = known.name, known.layers

    assert starting_layer(Known()) == StartingLayer(known.layer, known.layer_source)
    assert "K = 15" in str(starting_layer(Known()))


def test_the_command_prints_a_row_for_each(capsys):
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    assert printed == command.table() + "\n"
    rows = printed.splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == [model.name for model in KNOWN_MODELS]
    assert {row.count("|") for row in printed.splitlines()} == {10}
    assert "| LLaVA-1.5 7B | `llava-hf/llava-1.5-7b-hf` | 7.06 B | 4.5 GB | 32 | 576 |  | 15 | authors' code |" in rows


EMBEDDED_INSTEAD = f"Running the embedded model, not {DEFAULT_MODEL}: "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The published model's configuration; its weights are never read here."""
    folder = tmp_path_factory.mktemp("llava")
    CONFIGS[DEFAULT_MODEL]().save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def gpu(monkeypatch):
    """Makes torch say that there is a CUDA GPU with so many bytes free."""

    def make(free):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 24 * 10**9))
        for name in ("memory_reserved", "memory_allocated"):
            monkeypatch.setattr(torch.cuda, name, lambda device: 0)

    return make


def is_embedded(choice, why):
    assert (choice.name, choice.otherwise) == ("embedded", None)
    assert choice.reason == EMBEDDED_INSTEAD + why
    return True


def test_without_a_gpu_it_is_the_embedded_model():
    assert is_embedded(choose_model(device="cpu"), "it is slow without a CUDA GPU, and none is used here.")


def test_with_a_gpu_it_is_llava_in_four_bits(gpu, folder, monkeypatch, tmp_path):
    gpu(6_000_000_000)
    with hub_server({DEFAULT_MODEL: folder}) as (address, _):
        ask_hub(monkeypatch, tmp_path, address)
        choice = choose_model()
        assert (choice.name, choice.quantization, choice.device) == (DEFAULT_MODEL, "4bit", None)
        assert choice.reason == f"Running {DEFAULT_MODEL}: this machine's GPU has room for it."
        fetch(find_files(DEFAULT_MODEL), lambda done, total: None)
    # In the cache it needs no network.
    assert choose_model().name == DEFAULT_MODEL
    gpu(5_900_000_000)
    assert is_embedded(choose_model(), "it wants 6 GB free on the GPU, and 5.9 GB are.")


def test_what_is_asked_of_it_may_need_more_memory(gpu, folder, monkeypatch, tmp_path):
    gpu(10_000_000_000)
    with hub_server({DEFAULT_MODEL: folder}) as (address, _):
        ask_hub(monkeypatch, tmp_path, address)
        choice = choose_model(quantization="none")
        assert choose_model(quantization="8bit").quantization == "8bit"
    assert choice.name == "embedded"
    assert "needs about 16.0 GB of memory on cuda, and 10.0 GB are free: choose quantization 8bit" in choice.reason


def test_out_of_reach_or_refused_it_is_the_embedded_model(gpu, monkeypatch, tmp_path):
    gpu(8_000_000_000)
    ask_hub(monkeypatch, tmp_path, NOBODY)
    assert is_embedded(choose_model(), "it is not in this machine's cache, and the hub can't be reached.")
    with hub_server({}) as (address, _):
        ask_hub(monkeypatch, tmp_path, address)
        choice = choose_model()
    assert choice.name == "embedded"
    assert "\n" not in choice.reason


def test_what_is_asked_for_is_what_runs():
    choice = choose_model("a/b", "4bit", "cpu", "main", True)
    assert choice == ModelChoice("a/b", "4bit", "cpu", "main", True)
    assert choice.without("It can't be had.") is None
    assert choose_model("a/b", "none").quantization is None
    # What is asked for beside the name holds for the embedded model, too.
    assert choose_model(quantization="4bit", device="cpu").quantization == "4bit"
    with pytest.raises(ValueError, match="Unknown quantization '5bit': choose 4bit, 8bit or none"):
        choose_model("a/b", "5bit")


def test_what_cannot_be_loaded_after_all_makes_way():
    wanted = ModelChoice("a/b", otherwise=ModelChoice("embedded", device="cpu"))
    instead = wanted.without("The disk\nis full.")
    reason = "Running the embedded model, not a/b: The disk is full."
    assert instead == ModelChoice("embedded", device="cpu", reason=reason)


def test_an_empty_variable_is_none():
    environment = {"VTW_MODEL": " a/b ", "VTW_DEVICE": "", "VTW_REVISION": "  "}
    assert from_environment("MODEL", environment) == "a/b"
    assert {from_environment(name, environment) for name in ("DEVICE", "REVISION", "LAYER")} == {None}
