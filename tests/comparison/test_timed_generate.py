"""What one answer takes, of a bare model with random weights."""

import json
import shutil
import time
from contextlib import nullcontext

import pytest
import torch

from tests import saved_models
from vtw_demo import load
from vtw_demo.benchmark.shapes import random_inputs, random_model
from vtw_demo.comparison.calibration import calibrate
from vtw_demo.comparison.compare import compare
from vtw_demo.comparison.repeated_timing import repeat_timing
from vtw_demo.comparison.samples import Sample
from vtw_demo.comparison.timed_generate import timed_generate
from vtw_demo.measurements.flops import kv_cache_bytes_by_layer
from vtw_demo.withdrawal.withdraw import withdraw


@pytest.fixture
def prompt(tiny):
    model = random_model(tiny)
    return model, random_inputs(tiny, model, text_tokens=6, tokens_before=2)


def test_stages_add_up_and_the_cache_is_measured(prompt):
    model, inputs = prompt
    for layer in (1, 2, 4):
        cost = timed_generate(model.generate, model, inputs, withdraw(model, layer), max_new_tokens=5)
        assert cost.kv_cache_bytes == sum(
            kv_cache_bytes_by_layer(model.config, 22, 16, layer, decoded_tokens=4, bytes_per_element=4)
        )
        assert cost.total_ms == pytest.approx(cost.encode_ms + cost.prefill_ms + 4 * cost.decode_ms_per_token)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_one_token_has_no_decode(prompt):
    model, inputs = prompt
    cost = timed_generate(model.generate, model, inputs, nullcontext(), max_new_tokens=1)
    assert cost.decode_ms_per_token is None
    assert cost.total_ms == pytest.approx(cost.encode_ms + cost.prefill_ms)


def test_new_tokens_are_handed_over_in_time_that_is_not_counted_and_may_end_the_answers(tiny):
    model = random_model(tiny)
    inputs = random_inputs(tiny, model, text_tokens=6, tokens_before=2, batch=2)
    expected = model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, 22:]
    seen = []

    def look(tokens):
        time.sleep(0.3)
        seen.append(tokens)
        return len(seen) == 3

    cost = timed_generate(model.generate, model, inputs, nullcontext(), look, max_new_tokens=5, do_sample=False)
    assert torch.equal(torch.stack(seen, dim=1), expected[:, :3])
    assert cost.total_ms < 600


def test_hooks_are_gone_after_an_exception(prompt):
    model, inputs = prompt
    with pytest.raises(ValueError, match="nonsense"):
        timed_generate(model.generate, model, {**inputs, "nonsense": torch.ones(1)}, nullcontext(), max_new_tokens=3)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    saved_models.save("llava", folder)
    return folder


@pytest.fixture(scope="module")
def expected(llava, picture):
    return made(load(str(llava), device="cpu"), picture)


def made(vlm, picture):
    """What no setting of the cache may change: answers and caches of a comparison, rounds, a calibration."""
    *_, comparison = compare(vlm, picture, "What is this?", 2, max_new_tokens=4)
    *_, timing = repeat_timing(vlm, vlm.prompt(picture, "What is this?"), 2, 3, 1)
    *_, calibration = calibrate(vlm, [Sample("one", picture, "What is this?", answer_tokens=3)])
    runs = comparison.full, comparison.withdrawn
    return [(run.tokens, run.kv_cache_bytes) for run in runs], timing.rounds, calibration.mean


@pytest.mark.parametrize(
    ("file", "part", "settings"),
    [
        ("generation_config.json", None, {"use_cache": False}),
        ("config.json", None, {"use_cache": False}),
        ("config.json", "text_config", {"use_cache": False}),
        ("generation_config.json", None, {"cache_implementation": "static"}),
        ("generation_config.json", None, {"cache_implementation": "offloaded"}),
        ("generation_config.json", None, {"use_cache": False, "cache_implementation": "quantized"}),
    ],
)
def test_a_cache_that_grows_is_used_whatever_the_files_say(llava, tmp_path, file, part, settings, picture, expected):
    folder = shutil.copytree(llava, tmp_path / "model")
    written = json.loads((folder / file).read_text())
    (written if part is None else written[part]).update(settings)
    if file == "config.json":  # as those saved before it had a file of its own
        (folder / "generation_config.json").unlink()
        written["text_config"].pop("eos_token_id")
    (folder / file).write_text(json.dumps(written))
    assert made(load(str(folder), device="cpu"), picture) == expected
