"""What people hand over in place of a model: what wraps one and works, and what is refused, with what to do instead."""

import copy
import re
import types

import numpy as np
import pytest
import torch
from torch import nn

from tests.tiny_models import build
from vtw_demo.measurements.attention import measure_attention, measure_attention_map
from vtw_demo.measurements.layer_sweep import sweep
from vtw_demo.withdrawal.baselines import blind, withdraw_renumbered
from vtw_demo.withdrawal.fastv import fastv
from vtw_demo.withdrawal.prune import prune
from vtw_demo.withdrawal.withdraw import withdraw

TINY = build("llava")
INPUTS = TINY.prompt([1, 2, 3, "image", 4, 5, 6])
GENERATE = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [TINY.model.config.image_token_id]}


def with_lora(model):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))


def with_lora_for_language(model):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(target_modules=["v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config)


def with_loaded_adapter(model):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    model.add_adapter(peft.LoraConfig(target_modules=["o_proj"], init_lora_weights=False))
    return model


def compiled_lora(model):
    return torch.compile(with_lora(model), backend="eager")


def compiled(model):
    return torch.compile(model, backend="eager")


def offloaded_to_memory(model):
    return pytest.importorskip("accelerate").cpu_offload(model, execution_device="cpu")


def dispatched(model):
    return pytest.importorskip("accelerate").dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)


WRAPPERS = [
    with_lora,
    with_lora_for_language,
    with_loaded_adapter,
    compiled,
    compiled_lora,
    offloaded_to_memory,
    dispatched,
]


def by_hand(model, inputs, layer):
    """The answer, token by token, of prefills in which withdrawal is asked of the bare model at every step."""
    ids = inputs["input_ids"]
    for _ in range(GENERATE["max_new_tokens"]):
        step = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad(), withdraw(model, layer):
            logits = model(**step, use_cache=False).logits[0, -1]
        logits[GENERATE["suppress_tokens"]] = -torch.inf
        ids = torch.cat([ids, logits.argmax()[None, None]], dim=1)
    return ids


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_model_withdraws(wrap):
    handed = wrap(copy.deepcopy(TINY.model))
    bare = handed
    while not isinstance(bare, type(TINY.model)):
        bare = bare._orig_mod if hasattr(bare, "_orig_mod") else bare.get_base_model()
    expected = by_hand(bare, INPUTS, 2)
    with torch.no_grad():
        full = handed(**INPUTS, use_cache=False).logits
        with withdraw(handed, 2):
            logits = handed(**INPUTS, use_cache=False).logits
            assert torch.equal(handed.generate(**INPUTS, **GENERATE), expected)
        with withdraw(bare, 2):
            torch.testing.assert_close(logits, bare(**INPUTS, use_cache=False).logits)
        torch.testing.assert_close(handed(**INPUTS, use_cache=False).logits, full)
    assert not torch.allclose(logits[0, -1], full[0, -1], atol=1e-3)
    torch.testing.assert_close(sweep(handed, INPUTS).kl, sweep(bare, INPUTS).kl)
    assert measure_attention(handed, INPUTS, [4, 5], 2) == measure_attention(bare, INPUTS, [4, 5], 2)


def test_a_model_on_disk_withdraws(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    model = accelerate.disk_offload(copy.deepcopy(TINY.model), tmp_path, execution_device="cpu")
    with withdraw(TINY.model, 2):
        expected = TINY.model.generate(**INPUTS, **GENERATE)
    with withdraw(model, 2):
        assert torch.equal(model.generate(**INPUTS, **GENERATE), expected)


@pytest.mark.parametrize("layer", [1, 2, 3])
@pytest.mark.parametrize("rows", [["image", 4], ["image", 4, 5, "image"]], ids=["alike", "ragged"])
def test_layers_may_be_on_several_devices(layer, rows):
    """The meta device computes no numbers, and refuses what lies on another device as a second GPU does."""
    hooks = pytest.importorskip("accelerate.hooks")
    model, inputs = copy.deepcopy(TINY.model), TINY.prompt([1, 2, "image", 4, 5], [*rows, 6])
    decoder = model.model.language_model
    for module in (*decoder.layers[2:], decoder.norm, model.lm_head):
        hook = hooks.AlignDevicesHook(execution_device="meta", io_same_device=False)
        hooks.add_hook_to_module(module.to("meta"), hook)
    with torch.no_grad(), withdraw(model, layer):
        states = model(**inputs, output_hidden_states=True).hidden_states
        assert {state.shape[:2] for state in states} == {inputs["input_ids"].shape}
        prefill = model(**inputs, logits_to_keep=1)
        mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)], dim=1)
        step = model(input_ids=torch.tensor([[5], [6]]), past_key_values=prefill.past_key_values, attention_mask=mask)
    assert step.logits.device.type == "meta"


def test_prompt_tuning_is_told_where_it_cannot_work():
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2, num_layers=4, token_dim=32)
    model = peft.get_peft_model(copy.deepcopy(TINY.model), config)
    with (
        torch.no_grad(),
        withdraw(model, 2),
        pytest.raises(ValueError, match="Hand input_ids instead of inputs_embeds"),
    ):
        model(**INPUTS)


@pytest.fixture
def process_group():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    yield
    torch.distributed.destroy_process_group()


def refusal(handed, contexts):
    sentences = set()
    for context in contexts:
        with pytest.raises(ValueError, match=re.compile(".", re.DOTALL)) as told, context(handed):
            pass
        sentences.add(str(told.value))
    (sentence,) = sentences
    return sentence


CONTEXTS = [
    lambda model: withdraw(model, 2),
    lambda model: fastv(model, 2, 0.5),
    lambda model: prune(model, "0:uniform_grid:0.5;2:random_tokens:0"),
    lambda model: withdraw_renumbered(model, 2),
    blind,
    lambda model: sweep(model, INPUTS),
    lambda model: measure_attention(model, INPUTS),
    lambda model: measure_attention_map(model, INPUTS),
]


def test_parallel_models_are_refused(process_group):
    assert "Hand over its model, `.module`" in refusal(nn.DataParallel(TINY.model), CONTEXTS)
    model = nn.parallel.DistributedDataParallel(copy.deepcopy(TINY.model))
    assert refusal(model, CONTEXTS) == (
        "A DistributedDataParallel is no vision-language model of transformers. Hand over its model, `.module`."
    )


@pytest.mark.parametrize("part", ["whole", "layers"])
def test_models_that_fsdp_has_sharded_are_refused(process_group, part):
    from torch.distributed.fsdp import fully_shard

    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    model = copy.deepcopy(TINY.model)
    for module in [model] if part == "whole" else model.model.language_model.layers:
        fully_shard(module, mesh=mesh)
    sentence = refusal(model, CONTEXTS)
    assert "sharded by FSDP" in sentence
    assert "from_pretrained" in sentence


@pytest.mark.parametrize(
    ("handed", "advice"),
    [
        (types.SimpleNamespace(model=TINY.model), "Hand over its model, `.model`."),
        (types.SimpleNamespace(module=TINY.model), "Hand over its model, `.module`."),
        (None, "A NoneType is no"),
        ("llava-hf/llava-1.5-7b-hf", "A str is no"),
        (nn.Linear(2, 2), "Hand over what from_pretrained returns."),
        (TINY.model.config, "A LlavaConfig is no"),
        (TINY.model.model.language_model, "names no placeholder token"),
    ],
)
def test_what_is_no_model_is_told_so(handed, advice):
    assert advice in refusal(handed, CONTEXTS[:1])


@pytest.mark.parametrize(
    "layer",
    [np.int64(2), np.int32(2), np.uint8(2), torch.tensor(2), torch.tensor([2])[0], torch.tensor(2, dtype=torch.int32)],
)
def test_whole_numbers_of_numpy_and_torch_are_whole_numbers(layer):
    with withdraw(TINY.model, 2):
        expected = TINY.model.generate(**INPUTS, **GENERATE)
    with withdraw(TINY.model, layer):
        assert torch.equal(TINY.model.generate(**INPUTS, **GENERATE), expected)
    with fastv(TINY.model, layer, 0.5):
        pass
    assert sweep(TINY.model, INPUTS, positions_at_once=layer).kl.shape == (1, 3)
    assert measure_attention_map(TINY.model, INPUTS, [4, 5, 6], answer_token=layer).answer_token == 2


@pytest.mark.parametrize("layer", [np.bool_(True), torch.tensor(True), torch.tensor(2.0), np.float64(2), "2", [2]])
def test_other_numbers_are_not(layer):
    with pytest.raises(TypeError, match="must be an integer"), withdraw(TINY.model, layer):
        pass
