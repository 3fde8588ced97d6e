import json
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from tests import hub_figures
from tests.hub_configs import CONFIGS
from tests.hub_server import NOBODY, ask_hub, hub_server
from vtw_demo.__main__ import main
from vtw_demo.models import command, hardware
from vtw_demo.models.hub import fetch, find_files
from vtw_demo.models.loading import ModelChoice, check_model
from vtw_demo.models.registry import (
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
        "Qwen2.5-VL 3B", "Qwen2.5-VL 7B", "Qwen3-VL 2B", "Qwen3-VL 4B", "Qwen3-VL 8B", "Qwen3.5 0.8B", "Qwen3.5 2B",
        "Qwen3.5 4B", "Qwen3.5 9B", "InternVL3 1B", "InternVL3 2B", "InternVL3 8B", "InternVL3.5 1B", "InternVL3.5 2B",
        "InternVL3.5 4B", "InternVL3.5 8B", "SmolVLM2 256M", "SmolVLM2 500M", "SmolVLM2 2.2B", "Gemma 3 4B",
        "Gemma 4 E2B", "Gemma 4 E4B", "PaliGemma 2 3B", "Granite Vision 3.3 2B", "GLM-4.6V Flash 9B", "MiniCPM-V 4.6",
        "LFM2.5-VL 450M", "LFM2.5-VL 1.6B", "Video-LLaVA 7B",
    ]  # fmt: skip
    assert len({model.name for model in KNOWN_MODELS}) == len(KNOWN_MODELS)


@pytest.mark.parametrize("model", KNOWN_MODELS, ids=lambda model: model.title)
def test_what_is_said_of_a_model_is_what_its_configuration_makes(model):
    found = hub_figures.of_weights(model.name)
    with suppress(ImportError):  # LFM2.5-VL's processor needs torchvision
        found |= hub_figures.of_pictures(model.name)
    # JSON's, as the file has it.
    assert json.loads(json.dumps(vars(model))).items() >= found.items()
    assert model.license


def test_the_layers_of_the_authors_are_theirs():
    by_authors = {model.title: model.layer for model in KNOWN_MODELS if model.layer_source == "authors' code"}
    # `--k=15` in their README, `k = 16` in their VideoLLaVA.
    assert by_authors == {"LLaVA-1.5 7B": 15, "Video-LLaVA 7B": 16}
    for model in KNOWN_MODELS:
        share = hub_figures.SHARES.get(model.layer_source)
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
    assert {row.count("|") for row in printed.splitlines()} == {12}
    llava = "| LLaVA-1.5 7B | `llava-hf/llava-1.5-7b-hf` | llama2 | 7.06 B | 14.1 GB | 4.5 GB | 32 | 576 |  | 15 |"
    assert f"{llava} authors' code |" in rows


LLAVA, QWEN = "llava-hf/llava-1.5-7b-hf", "Qwen/Qwen3-VL-2B-Instruct"
SMOLVLM, INTERNVL = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct", "OpenGVLab/InternVL3_5-1B-HF"
ROWS = [
    ("cuda", 24, LLAVA, "4bit"), ("cuda", 6, LLAVA, "4bit"), ("cuda", 5.9, QWEN, "4bit"), ("cuda", 3, QWEN, "4bit"),
    ("cuda", 2.9, SMOLVLM, None), ("mps", 8.6, INTERNVL, None), ("mps", 64, INTERNVL, None),
    ("cpu", 4, SMOLVLM, None), ("cpu", 64, SMOLVLM, None),
]  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The published models' configurations on the hub; their weights are never read here."""
    named = {INTERNVL: CONFIGS["OpenGVLab/InternVL3-1B-hf"]} | CONFIGS
    models = {}
    for name in (LLAVA, QWEN, SMOLVLM, INTERNVL):
        models[name] = folder = tmp_path_factory.mktemp("published")
        named[name]().save_pretrained(folder)
        (folder / "model.safetensors").write_bytes(b"weights")
    return models


@pytest.fixture
def machine(monkeypatch):
    """Makes this a machine with such a device and so many GB, of which a GPU computes what the CPU does."""

    def make(device, gigabytes):
        monkeypatch.setattr(hardware, "accelerator", lambda: None if device == "cpu" else device)
        monkeypatch.setattr(hardware, "all_memory", lambda: int(gigabytes * 1e9))
        monkeypatch.setattr(hardware, "free_memory", lambda _: int(gigabytes * 1e9))
        monkeypatch.setattr("vtw_demo.models.loading.check_device", lambda *_: None)

    return make


@pytest.fixture
def hub(published, monkeypatch, tmp_path):
    with hub_server(published) as (address, _):
        ask_hub(monkeypatch, tmp_path, address)
        yield


@pytest.mark.parametrize(("device", "gigabytes", "name", "quantization"), ROWS)
def test_each_machine_gets_its_model_and_is_told_why(hub, machine, device, gigabytes, name, quantization):
    machine(device, gigabytes)
    choice = choose_model()
    assert (choice.name, choice.quantization, choice.device) == (name, quantization, None)
    assert choice.reason.startswith(f"Running {name}: ")
    assert "\n" not in choice.reason


@pytest.mark.parametrize(
    ("device", "gigabytes", "expected"),
    [
        ("cpu", 3.9, f"Running the embedded model: {SMOLVLM} wants 4 GB of memory, and there are 3.9."),
        ("mps", 4, f"Running the embedded model: {INTERNVL} wants 8 GB of memory, and there are 4.0."),
        ("xpu", 64, "Running the embedded model: no other is suggested for the device xpu: name one with --model."),
        ("cuda", 1, f"Running the embedded model, not {SMOLVLM}: The model '{SMOLVLM}' needs about 1.6 GB of memory"),
    ],
)
def test_a_machine_with_too_little_gets_the_embedded_one_and_is_told_why(hub, machine, device, gigabytes, expected):
    machine(device, gigabytes)
    choice = choose_model()
    assert choice.name == "embedded"
    assert choice.reason.startswith(expected)


@pytest.mark.parametrize(("has_instructions", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_on_a_cpu_it_is_bfloat16_where_the_cpu_computes_in_it(hub, machine, monkeypatch, has_instructions, dtype):
    machine("cpu", 16)
    monkeypatch.setattr(hardware, "computes_in_bfloat16", lambda: has_instructions)
    assert check_model(choose_model()).dtype == dtype


def test_on_apples_gpu_it_is_bfloat16_and_never_in_4_bits(hub, machine):
    machine("mps", 16)
    outlook = check_model(choose_model())
    assert (outlook.device.type, outlook.dtype) == ("mps", torch.bfloat16)
    assert "4 bits" in choose_model().reason
    asked = choose_model(quantization="4bit")
    assert asked.name == "embedded"
    assert "On Apple's GPU (mps) no weights are held in 4 or 8 bits" in asked.reason
    # What is stored in 4 bits is expanded.
    assert choose_model("embedded").quantization is None
    assert check_model(choose_model("embedded")).dtype == torch.bfloat16


def test_in_the_cache_it_needs_no_network(hub, machine, monkeypatch, tmp_path):
    machine("cpu", 16)
    fetch(find_files(SMOLVLM), lambda done, total: None)
    ask_hub(monkeypatch, tmp_path, NOBODY)
    assert choose_model().name == SMOLVLM


def test_what_is_asked_of_it_may_need_more_memory(hub, machine):
    machine("cuda", 10)
    choice = choose_model(quantization="none")
    assert choose_model(quantization="8bit").quantization == "8bit"
    assert choice.name == "embedded"
    assert "needs about 16.0 GB of memory on cuda, and 10.0 GB are free: choose quantization 8bit" in choice.reason


def test_out_of_reach_or_refused_it_is_the_embedded_model(machine, monkeypatch, tmp_path):
    machine("cpu", 16)
    ask_hub(monkeypatch, tmp_path, NOBODY)
    choice = choose_model()
    why = (
        f"The model '{SMOLVLM}' is not, or not whole, in this machine's cache, and the hub ({NOBODY}) can't be reached"
    )
    assert choice.name == "embedded"
    assert choice.reason.startswith(f"Running the embedded model, not {SMOLVLM}: {why}: check the network")
    with hub_server({}) as (address, _):
        ask_hub(monkeypatch, tmp_path, address)
        choice = choose_model()
    assert choice.name == "embedded"
    assert "\n" not in choice.reason


def test_what_is_asked_for_is_what_runs():
    choice = choose_model("a/b", "4bit", "cpu", "main", True)
    assert choice == ModelChoice("a/b", "4bit", "cpu", "main", True)
    assert choose_model("a/b", "none").quantization is None
    # What is asked for beside the name holds for the embedded model, too.
    assert choose_model(quantization="4bit", device="cpu").quantization == "4bit"
    with pytest.raises(ValueError, match="Unknown quantization '5bit': choose 4bit, 8bit or none"):
        choose_model("a/b", "5bit")


def test_an_empty_variable_is_none():
    environment = {"VTW_MODEL": " a/b ", "VTW_DEVICE": "", "VTW_REVISION": "  "}
    assert from_environment("MODEL", environment) == "a/b"
    assert {from_environment(name, environment) for name in ("DEVICE", "REVISION", "LAYER")} == {None}
