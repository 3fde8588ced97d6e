"""What all tests share. Only pytest and torch are imported here: some tests run where nothing else is installed."""

import os

# Tiny tensors gain nothing by threads, and the tests run in two processes. Before torch reads it.
os.environ["OMP_NUM_THREADS"] = "1"

import random
import shutil

import pytest
import torch

pytest_plugins = ["tests.serving"]
torch.set_num_threads(1)

PROCESSES = 2


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """With pytest-xdist, two processes unless another number is asked for: `-n 0` is one. A file's tests share one."""
    is_worker = hasattr(config, "workerinput")
    if getattr(config.option, "numprocesses", 0) is None and not is_worker and not config.getoption("usepdb"):
        config.option.numprocesses, config.option.dist = PROCESSES, "loadfile"
        config.option.loadscopereorder = False


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Files that start servers take longest, and come first: one process would be left with the last of them."""
    items.sort(key=lambda item: not {"page", "server", "test_load.py"} & set(item.path.parts))


@pytest.fixture(scope="module")
def golden_model():
    from tests import golden

    return golden.build_model()


@pytest.fixture(scope="module")
def golden_inputs():
    from tests import golden

    return golden.inputs()


@pytest.fixture(scope="session")
def vlm():
    """The embedded model. It is shared: a test leaves it as it was."""
    from vtw_demo.models.loading import load

    return load("embedded", device="cpu")


@pytest.fixture(scope="session")
def picture():
    from vtw_demo.embedded.scenes import draw, random_scene

    return draw(random_scene(random.Random(4), 2))


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium: Debian's, or Playwright's own."""
    from playwright.sync_api import Error, sync_playwright

    installed = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        except Error as error:
            reason = f"no Chromium to drive: {str(error).splitlines()[0]}"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
        yield browser
        browser.close()


def run(answer="red", tokens=(7, 2), **changes):
    from vtw_demo.comparison.timed_generate import Run

    values = {
        "answer": answer,
        "tokens": tokens,
        "encode_ms": 5.0,
        "prefill_ms": 40.0,
        "decode_ms_per_token": 4.0,
        "total_ms": 49.0,
        "prefill_flops": 1000,
        "kv_cache_bytes": 200,
    }
    return Run(**(values | changes))


@pytest.fixture
def make_run():
    return run


@pytest.fixture
def make_comparison():
    """A comparison of two runs of a 12-layer model, withdrawn at layer 6 unless told otherwise."""
    from vtw_demo.comparison.compare import Comparison

    def make(full=None, withdrawn=None, layer=6, beside=None, recipe=None):
        return Comparison(
            model="embedded",
            precision="float32",
            device="cpu",
            detail="usual",
            question="What color is it?",
            layer=layer,
            layers=12,
            visual_tokens=196,
            text_tokens=14,
            full=full or run(),
            withdrawn=withdrawn or run(prefill_ms=25.0, prefill_flops=560, kv_cache_bytes=118),
            beside=beside,
            recipe=recipe,
        )

    return make


@pytest.fixture
def tiny(monkeypatch):
    """The name of a shape that is measured in no time."""
    from vtw_demo.benchmark import shapes

    architecture = {
        "model_type": "llava",
        "image_token_index": 32_000,
        "vision_feature_layer": -1,
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": 8,
            "patch_size": 2,
        },
        "text_config": {
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "vocab_size": 32_064,
        },
    }
    shape = shapes.Shape(architecture, 16, {"pixel_values": [1, 3, 8, 8]})
    monkeypatch.setitem(shapes.SHAPES, "small", shape)
    return "small"
