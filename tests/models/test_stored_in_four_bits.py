"""The embedded model as its third edition is stored: expanded, or in 4 bits where that is no slower."""

import pytest
import torch
from bitsandbytes.nn import modules
from PIL import Image
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from vtw_demo import load
from vtw_demo.models import loading, registry
from vtw_demo.models.loading import ModelChoice, check_model
from vtw_demo.models.registry import choose_model
from vtw_demo.page.html import header


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The embedded model in 4 bits."""
    folder = tmp_path_factory.mktemp("stored")
    vlm = load("embedded", device="cpu")
    bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=["model.vision_tower", "model.multi_modal_projector", "lm_head"],
    )
    vlm.model.save_pretrained(folder / "whole")
    AutoModelForImageTextToText.from_pretrained(
        folder / "whole", quantization_config=bits, device_map="cpu", dtype=torch.bfloat16
    ).save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def embedded(stored, monkeypatch):
    for module in (loading, registry):
        monkeypatch.setattr(module, "EMBEDDED_FOLDER", stored)


@pytest.mark.parametrize("is_slower", [False, True])
def test_it_is_held_in_four_bits_where_that_is_no_slower_and_the_page_says_which(is_slower, monkeypatch):
    monkeypatch.setattr(loading, "_is_slower_in_four_bits", lambda model: is_slower)
    vlm = load("embedded", "4bit", device="cpu")
    assert vlm.precision == ("float32" if is_slower else "4-bit")
    assert ("stored in 4 bits, expanded: this processor is faster so" in header(vlm)) == is_slower
    assert vlm.precision in header(vlm)


def test_both_have_the_same_weights_and_about_the_same_answers(monkeypatch):
    monkeypatch.setattr(loading, "_is_slower_in_four_bits", lambda model: False)
    packed, whole = load("embedded", "4bit", device="cpu"), load("embedded", device="cpu")
    assert (whole.precision, whole.note, whole.quantization) == ("float32", "", None)
    monkeypatch.setattr(loading, "_is_slower_in_four_bits", lambda model: True)
    expanded = load("embedded", "4bit", device="cpu")
    for name, weight in whole.model.named_parameters():
        assert torch.equal(expanded.model.get_parameter(name), weight), name
    inputs = whole.prepare(Image.new("RGB", (60, 60), "red"), "What?")
    with torch.no_grad():
        # Some processors round to bfloat16 in products with 4-bit weights.
        found, expected = packed.model(**inputs).logits, whole.model(**inputs).logits
    assert torch.nn.functional.cosine_similarity(found[0, -1], expected[0, -1], dim=0) > 0.99


def test_memory_is_foreseen_for_both():
    for quantization in (None, "4bit"):
        choice = ModelChoice("embedded", quantization, "cpu")
        foreseen = check_model(choice).architecture.weight_bytes(quantization, torch.float32)
        if quantization is None:
            assert foreseen == pytest.approx(load("embedded", device="cpu").memory_bytes, rel=0.01)
            whole = foreseen
    assert foreseen < whole / 2


@pytest.mark.parametrize("has_instructions", [False, True])
def test_the_processor_says_which_is_slower_at_every_start(has_instructions, monkeypatch):
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: has_instructions)
    for _ in range(2):
        assert load("embedded", "4bit", device="cpu").precision == ("4-bit" if has_instructions else "float32")


def test_unless_it_is_asked_otherwise_it_runs_as_it_is_stored(monkeypatch):
    assert choose_model(device="cpu").quantization == "4bit"
    assert choose_model("embedded", device="cpu").quantization == "4bit"
    assert choose_model("embedded", "none", "cpu").quantization is None
    monkeypatch.setattr(registry, "on_zero_gpu", lambda: True)
    assert choose_model("embedded", device="cpu").quantization is None
