"""No device but the CPU is at hand: a wrong one is the CPU, on which attention or products are made wrong."""

from contextlib import contextmanager

import pytest
import torch
from transformers import PreTrainedConfig

from tests import saved_models
from tests.hub_configs import CONFIGS
from vtw_demo.models import device_check, devices, hardware
from vtw_demo.models.device_check import check_device, random_layers
from vtw_demo.models.devices import find_device
from vtw_demo.models.loading import ModelChoice, check_model

MPS = torch.device("mps")
real_logits = device_check.logits
attention = torch.nn.functional.scaled_dot_product_attention


def leaking(query, key, value, attn_mask=None, is_causal=False, **options):
    """As torch 2.12 on Apple's GPU: each four positions see what the last of them does (pytorch#195910)."""
    places = torch.arange(query.shape[-2])
    mask = places[None] <= (places[:, None] | 3)
    return attention(query, key, value, attn_mask=mask, **options)


@contextmanager
def wrong_attention(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", leaking)
        yield


@contextmanager
def wrong_products(monkeypatch):
    linear = torch.nn.functional.linear
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", lambda x, weight, bias=None: 1.1 * linear(x, weight, bias))
        yield


@contextmanager
def not_numbers(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", lambda x, weight, bias=None: x @ weight.T * float("nan"))
        yield


@pytest.fixture
def apple(monkeypatch):
    """Makes this a machine with Apple's GPU, which computes as the CPU does, but in a type that `faults` names."""
    monkeypatch.setattr(hardware, "accelerator", lambda: "mps")
    monkeypatch.setattr(hardware, "free_memory", lambda device: 10**10)
    monkeypatch.setattr(device_check, "_right", set())
    monkeypatch.setattr(devices, "_refused", {})
    asked = []

    def make(fault=None, of=torch.bfloat16):
        def logits(decoder, device, dtype):
            asked.append((device.type, dtype))
            if device.type == "mps" and dtype == of and fault is not None:
                with fault(monkeypatch):
                    return real_logits(decoder, torch.device("cpu"), dtype)
            return real_logits(decoder, torch.device("cpu"), dtype)

        monkeypatch.setattr(device_check, "logits", logits)
        return asked

    return make


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smolvlm")
    saved_models.save("smolvlm", folder)
    return folder


@pytest.mark.parametrize(
    "name",
    ["llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "HuggingFaceTB/SmolVLM2-256M-Video-Instruct", "google/gemma-3-4b-it"],
)
def test_a_device_that_is_right_is_checked_once_for_each_kind(apple, name):
    asked, config = apple(), CONFIGS[name]()
    check_device(MPS, config)
    assert asked == [("cpu", torch.float32), ("mps", torch.float32), ("mps", torch.bfloat16)]
    check_device(MPS, config)
    check_device(torch.device("cpu"), CONFIGS["Qwen/Qwen3-VL-2B-Instruct"]())
    assert len(asked) == 3


@pytest.mark.parametrize("of", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fault", [wrong_attention, wrong_products, not_numbers])
def test_a_device_that_is_wrong_is_refused_with_the_torch_that_mends_it(apple, fault, of):
    apple(fault, of)
    with pytest.raises(ValueError, match=r"torch .* computes something else on mps than on the CPU: .*torch 2\.14"):
        check_device(MPS, CONFIGS["HuggingFaceTB/SmolVLM2-500M-Video-Instruct"]())


def test_the_cpu_is_used_instead_and_it_is_said(apple, folder):
    apple(wrong_attention)
    assert find_device(None).type == "mps"
    for _ in range(2):  # it is said of each model that might have run there
        outlook = check_model(ModelChoice(str(folder)))
        assert outlook.device.type == "cpu"
        assert outlook.note.startswith("On the CPU: torch ")
    assert find_device(None).type == "cpu"
    assert check_model(ModelChoice(str(folder), device="cpu")).note == ""


def test_a_kind_that_cannot_be_made_alone_is_checked_with_a_plain_one():
    decoder, logits = random_layers(PreTrainedConfig(hidden_size=8))
    assert type(decoder).__name__ == "LlamaModel"
    assert logits.isfinite().all()
