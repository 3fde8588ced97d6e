"""Checkpoints that were quantized before: what is said of them is what they are."""

import json
import shutil
from importlib.util import find_spec

import bitsandbytes as bnb
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from tests import saved_models
from vtw_demo import load
from vtw_demo.__main__ import main
from vtw_demo.comparison.calibration import CalibrationStore
from vtw_demo.comparison.compare import compare
from vtw_demo.models.loading import ModelChoice, check_model
from vtw_demo.page.html import header

OUTSIDE = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
FIRST_LAYERS = [f"model.language_model.layers.{index}" for index in (0, 1)]
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
FP4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}
INT8 = {"load_in_8bit": True}
# NF4 with nested constants, FP4 with one of 32 bits for 64 weights, and int8.
BITS = {"NF4": 4.127, "FP4": 4.5, "INT8": 8}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A LLaVA whose weights are whole blocks of bitsandbytes'."""
    folder = tmp_path_factory.mktemp("base")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (sizes | {"head_dim": 16}).items():
            patch.setitem(saved_models.TEXT, name, value)
        saved_models.save("llava", folder, as_on_hub=True)
    return folder


def quantized(base, folder, settings, dtype=torch.bfloat16, computed_in=torch.bfloat16):
    """The same as others save it: quantized by transformers itself."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = BitsAndBytesConfig(**settings, bnb_4bit_compute_dtype=computed_in)
    AutoModelForImageTextToText.from_pretrained(
        base, quantization_config=config, device_map={"": "cpu"}, dtype=dtype
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def nf4(base, tmp_path_factory):
    """In the decoder layers, as `load` quantizes."""
    return quantized(base, tmp_path_factory.mktemp("nf4") / "model", NF4 | {"llm_int8_skip_modules": OUTSIDE})


def held(model):
    """The modules that bitsandbytes holds, by its classes."""
    kinds = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


@pytest.mark.parametrize(
    ("kind", "settings", "count", "precision", "said"),
    [
        (
            "NF4",
            NF4 | {"llm_int8_skip_modules": OUTSIDE},
            28,
            "4-bit",
            "decoder layers are held in 4 bits (NF4, double quantization); all",
        ),
        (
            "NF4",
            NF4,
            42,
            "4-bit in part",
            "42 linear modules are held in 4 bits in part (NF4, double quantization); all",
        ),
        (
            "NF4",
            NF4 | {"llm_int8_skip_modules": []},
            43,
            "4-bit throughout",
            "43 linear modules are held in 4 bits throughout (NF4, double quantization); all",
        ),
        ("FP4", FP4 | {"llm_int8_skip_modules": OUTSIDE}, 28, "4-bit", "decoder layers are held in 4 bits (FP4); all"),
        (
            "FP4",
            FP4 | {"llm_int8_skip_modules": OUTSIDE + FIRST_LAYERS},
            14,
            "4-bit in part",
            "14 linear modules are held in 4 bits in part (FP4); all",
        ),
        ("INT8", INT8 | {"llm_int8_skip_modules": OUTSIDE}, 28, "8-bit", "decoder layers are held in 8 bits; all"),
        ("INT8", INT8, 42, "8-bit in part", "42 linear modules are held in 8 bits in part; all"),
    ],
)
def test_what_bitsandbytes_quantized_is_told_as_it_is(base, tmp_path, kind, settings, count, precision, said):
    folder = quantized(base, tmp_path / "model", settings)
    choice = ModelChoice(str(folder), device="cpu")
    outlook, vlm = check_model(choice), load(str(folder), device="cpu")
    modules = held(vlm.model)
    assert set(vlm.quantized_modules) == set(modules)
    assert len(modules) == count
    assert vlm.precision == precision
    assert said in vlm.quantized
    assert vlm.quantization == ("8bit" if kind == "INT8" else "4bit")
    in_modules = sum(module.in_features * module.out_features for module in modules.values())
    everything = sum(parameter.numel() for parameter in AutoModelForImageTextToText.from_pretrained(base).parameters())
    expected = in_modules * BITS[kind] / 8 + (everything - in_modules) * vlm.model.dtype.itemsize
    assert vlm.memory_bytes == pytest.approx(expected, rel=0.03)
    assert outlook.architecture.weight_bytes(None, outlook.dtype) == pytest.approx(expected, rel=0.01)
    *_, comparison = compare(vlm, Image.new("RGB", (60, 60), "red"), "What?", 2, max_new_tokens=2)
    assert comparison.precision == precision
    assert precision in header(vlm)
    vlm.release()
    assert vlm.precision == precision


def test_it_answers_as_what_is_quantized_here(base, tmp_path):
    computed_in = check_model(ModelChoice(str(base), "4bit", device="cpu")).dtype  # bfloat16 where the CPU has it
    settings = NF4 | {"llm_int8_skip_modules": OUTSIDE}
    nf4 = quantized(base, tmp_path / "model", settings, computed_in, computed_in)
    before, here = load(str(nf4), device="cpu"), load(str(base), "4bit", device="cpu")
    inputs = here.prepare(Image.new("RGB", (60, 60), "red"), "What?")
    with torch.no_grad():
        torch.testing.assert_close(before.model(**inputs).logits, here.model(**inputs).logits)
    assert (before.precision, before.quantized) == (here.precision, here.quantized)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_what_is_not_quantized_is_held_in_the_type_that_the_device_computes_in(base, tmp_path, dtype, monkeypatch):
    folder = quantized(base, tmp_path / "model", NF4 | {"llm_int8_skip_modules": OUTSIDE}, dtype)
    for capabilities, expected in (({}, torch.float32), ({"avx512_bf16": True}, torch.bfloat16)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        vlm = load(str(folder), device="cpu")
        types = {parameter.dtype for parameter in vlm.model.parameters() if parameter.is_floating_point()}
        assert types == {expected}
        assert str(expected).removeprefix("torch.") in vlm.quantized


def test_the_same_may_be_asked_for_and_another_may_not(nf4, capsys, tmp_path):
    plain, same = load(str(nf4), device="cpu"), load(str(nf4), "4bit", device="cpu")
    assert (same.precision, plain.note) == (plain.precision, "")
    assert "quantized before" in same.note
    assert CalibrationStore.of(same, tmp_path).folder == CalibrationStore.of(plain, tmp_path).folder
    said = (
        r"is quantized already \(4bit\), and can't be held in 8bit: load it without a quantization, or choose the model"
    )
    with pytest.raises(ValueError, match=said):
        load(str(nf4), "8bit", device="cpu")
    picture = tmp_path / "picture.png"
    Image.new("RGB", (60, 60), "red").save(picture)
    asked = ["compare", "--image", str(picture), "--question", "What?", "--layer", "2", "--device", "cpu"]
    assert main([*asked, "--model", str(nf4), "--quantization", "8bit"]) == 2
    assert "is quantized already (4bit)" in capsys.readouterr().err.splitlines()[-1]


def test_too_little_memory_is_not_answered_with_a_quantization(nf4, monkeypatch):
    monkeypatch.setattr("vtw_demo.models.hardware.free_memory", lambda device: 1000)
    with pytest.raises(ValueError, match=r"needs about 0\.0 GB .*: choose a smaller model\."):
        check_model(ModelChoice(str(nf4), device="cpu"))


def configured(base, folder, **settings):
    shutil.copytree(base, folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": settings}))
    return folder


def test_fp8_is_unpacked_without_a_gpu_and_said_to_be(base, tmp_path):
    left_out = ["vision_tower", "multi_modal_projector", "lm_head"]
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    folder = configured(base, tmp_path / "model", **settings, modules_to_not_convert=left_out)
    file, weights = folder / "model.safetensors", load_file(folder / "model.safetensors")
    for key in [key for key in weights if "language_model" in key and key.endswith("proj.weight")]:
        scale = weights[key].abs().max() / 448
        weights[f"{key}_scale_inv"] = scale.view(1, 1)
        weights[key] = (weights[key] / scale).to(torch.float8_e4m3fn)
    save_file(weights, file, metadata={"format": "pt"})
    vlm, whole = load(str(folder), device="cpu"), load(str(base), device="cpu")
    assert (vlm.precision, vlm.memory_bytes) == (whole.precision, whole.memory_bytes)
    assert vlm.quantized_modules == ()
    outlook = check_model(ModelChoice(str(folder), device="cpu"))
    assert outlook.architecture.weight_bytes(None, outlook.dtype) == pytest.approx(vlm.memory_bytes, rel=0.01)
    up = vlm.model.get_decoder().layers[1].mlp.up_proj.weight
    original = whole.model.get_decoder().layers[1].mlp.up_proj.weight
    torch.testing.assert_close(up, original, rtol=0.1, atol=0.01)
    with pytest.raises(ValueError, match=r"quantized already \(fp8\)"):
        load(str(folder), "4bit", device="cpu")


@pytest.mark.skipif(not find_spec("compressed_tensors"), reason="compressed-tensors isn't installed")
@pytest.mark.parametrize(("bits", "kind"), [(4, "int"), (8, "int"), (8, "float")])
def test_compressed_tensors_are_unpacked_and_said_to_be(base, tmp_path, bits, kind):
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    weights = {"num_bits": bits, "type": kind, "symmetric": True, "strategy": "channel"}
    config = QuantizationConfig(
        config_groups={"group_0": {"targets": ["re:.*language_model.*proj$"], "weights": weights}},
        format="float-quantized" if kind == "float" else "pack-quantized",
        quantization_status="compressed",
    )
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.bfloat16)
    apply_quantization_config(model, config)
    for module in model.modules():
        if isinstance(module, nn.Linear) and hasattr(module, "weight_scale"):
            largest = 448 if kind == "float" else 2 ** (bits - 1) - 1
            module.weight_scale.data = (module.weight.abs().amax(1, keepdim=True) / largest).to(torch.bfloat16)
    ModelCompressor(quantization_config=config).compress_model(model)
    folder = configured(base, tmp_path / "model", **json.loads(config.model_dump_json()))
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    vlm, whole = load(str(folder), device="cpu"), load(str(base), device="cpu")
    assert vlm.precision == f"{whole.precision} (compressed-tensors)"
    assert vlm.quantized == f"The checkpoint is quantized, and unpacked here: all weights are {vlm.precision}."
    assert vlm.quantized_modules == ()
    outlook = check_model(ModelChoice(str(folder), device="cpu"))
    assert outlook.architecture.weight_bytes(None, outlook.dtype) == pytest.approx(whole.memory_bytes, rel=0.01)
    original = whole.model.get_decoder().layers[1].mlp.up_proj.weight
    rounded = vlm.model.get_decoder().layers[1].mlp.up_proj.weight
    torch.testing.assert_close(rounded, original, rtol=0.1, atol=original.abs().max().item() / 2 ** (bits - 1))
    with pytest.raises(ValueError, match=r"quantized already \(compressed-tensors\)"):
        load(str(folder), "8bit", device="cpu")


@pytest.mark.parametrize(
    ("settings", "package"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}, "gptqmodel"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "optimum"),
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, "torchao"),
        ({"quant_method": "quanto", "weights": "int8"}, "optimum-quanto"),
    ],
)
def test_a_package_that_is_missing_is_named(base, tmp_path, settings, package):
    if find_spec(package.split("-")[0]):
        pytest.skip(f"{package} is installed")
    folder = configured(base, tmp_path / "model", **settings)
    with pytest.raises(ValueError, match="a package that it needs isn't installed") as caught:
        check_model(ModelChoice(str(folder), device="cpu"))
    assert package in str(caught.value).lower()
    assert "\n" not in str(caught.value)


def test_bitsandbytes_is_named_too(nf4, monkeypatch):
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda: False)
    with pytest.raises(ValueError, match=r"a package that it needs isn't installed.*bitsandbytes.* Install it"):
        load(str(nf4), device="cpu")


def test_a_method_that_nobody_knows_is_refused(base, tmp_path):
    folder = configured(base, tmp_path / "model", quant_method="of tomorrow")
    with pytest.raises(ValueError, match="can't be loaded: Unknown quantization type, got of tomorrow"):
        load(str(folder), device="cpu")
