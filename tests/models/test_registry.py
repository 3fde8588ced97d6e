from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.hub_configs import CONFIGS
from vtw_demo.__main__ import main
from vtw_demo.models import command
from vtw_demo.models.quantization import describe
from vtw_demo.models.registry import (
    EMBEDDED_LAYER,
    KNOWN_MODELS,
    KnownModel,
    StartingLayer,
    find_known_model,
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
    weights = architecture.weight_bytes("4bit", False, torch.bfloat16)
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
    assert starting_layer(replace(vlm, name="a/b")) == StartingLayer(9, "three quarters of the layers")
    # A folder or a small model by that name is another one.
    assert starting_layer(replace(vlm, name="llava-hf/llava-1.5-7b-hf")).layer == 9
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
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert readme.split("<!-- models -->\n")[1].split("<!-- /models -->")[0] == printed, "README has the same"
    assert "| LLaVA-1.5 7B | `llava-hf/llava-1.5-7b-hf` | 7.06 B | 4.5 GB | 32 | 576 |  | 15 | authors' code |" in rows


def test_checks_itself():
    good = KNOWN_MODELS[0]
    for change, said in (
        ({"layer": 0}, "from 1 to 32"),
        ({"layer": 33}, "this is 33"),
        ({"parameters": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=said):
            replace(good, **change)
    assert isinstance(good, KnownModel)
    with pytest.raises(ValueError, match="this is 0"):
        StartingLayer(0, "authors' code")
