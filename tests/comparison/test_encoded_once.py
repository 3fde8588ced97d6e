"""A picture whose encoding takes long is encoded once for both runs, and neither answers nor logits change."""

import json
from contextlib import suppress

import pytest
import torch
from PIL import Image

from tests import saved_models
from vtw_demo.comparison import timed_generate
from vtw_demo.comparison.analysis import Analysis, all_parts
from vtw_demo.comparison.compare import answer_at_layers, compare, compare_prompt
from vtw_demo.comparison.repeated_timing import repeat_timing
from vtw_demo.errors import UserError
from vtw_demo.models.processors import ClipProcessor
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.withdrawal.withdraw import withdraw

QUESTION = "What is this?"
FAMILIES = [name for name in saved_models.FAMILIES if not saved_models.missing_packages(name)]


def model_of(name):
    model, processor = saved_models.build(name)
    if hasattr(processor, "video_processor"):
        processor.video_processor = ClipProcessor(model.config.model_type, processor.image_processor, {})
    return VisionLanguageModel(name, model, processor)


@pytest.fixture
def picture():
    return Image.linear_gradient("L").convert("RGB").resize((120, 90))


@pytest.fixture
def takes_long(monkeypatch):
    """Any time is long enough: how long a small model takes depends on the machine."""
    monkeypatch.setattr(timed_generate, "LONG_ENCODING_MS", 0.0)


@pytest.fixture
def calls(request):
    """How often a model's encoder is called."""
    counted = []

    def count(vlm):
        names = {"vision_tower", "image_tower", "visual", "vision_model"}
        (tower,) = [module for name, module in vlm.model.base_model.named_children() if name in names]
        handle = tower.register_forward_pre_hook(lambda *_: counted.append(1))
        request.addfinalizer(handle.remove)
        return counted

    return count


def without_times(run):
    return run.answer, run.tokens, run.prefill_flops, run.kv_cache_bytes


@pytest.mark.parametrize("name", FAMILIES)
def test_the_answers_are_those_of_two_encodings(name, picture, monkeypatch, calls):
    vlm = model_of(name)
    encoded = calls(vlm)
    *_, twice = compare(vlm, picture, QUESTION, 2, max_new_tokens=6)
    each = len(encoded) // 2
    assert not twice.encoded_once
    monkeypatch.setattr(timed_generate, "LONG_ENCODING_MS", 0.0)
    encoded.clear()
    *_, once = compare(vlm, picture, QUESTION, 2, max_new_tokens=6)
    assert once.encoded_once
    assert len(encoded) == each
    for run in ("full", "withdrawn"):
        assert without_times(getattr(once, run)) == without_times(getattr(twice, run))


@pytest.mark.usefixtures("takes_long")
@pytest.mark.parametrize("name", FAMILIES)
def test_the_logits_are_the_same(name, picture):
    vlm = model_of(name)
    prompt = vlm.prompt(picture, QUESTION)
    list(compare_prompt(vlm, prompt, 2, 2))
    assert not any("pixel_values" in name for name in prompt.encoded_inputs)
    logits = []
    for inputs in (prompt.inputs, prompt.encoded_inputs):
        with torch.inference_mode(), withdraw(vlm.model, 2):
            options = {"max_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True}
            logits.append(torch.stack(vlm.generate(**inputs, **options).logits))
    assert torch.equal(*logits)


@pytest.mark.usefixtures("takes_long")
def test_it_is_timed_once(picture):
    vlm = model_of("llava")
    *_, comparison = compare(vlm, picture, QUESTION, 2, max_new_tokens=3)
    full, withdrawn = comparison.full, comparison.withdrawn
    assert withdrawn.encode_ms is None
    assert full.total_ms == pytest.approx(full.encode_ms + full.after_encoding_ms)
    assert withdrawn.total_ms == withdrawn.after_encoding_ms
    assert withdrawn.total_ms >= withdrawn.prefill_ms
    written = json.loads(json.dumps(comparison.to_json()))
    assert written["encoded_once"]
    assert written["withdrawn"]["encode_ms"] is None


@pytest.mark.usefixtures("takes_long")
def test_further_layers_take_it_too_and_rounds_encode_it_every_time(picture, calls):
    vlm = model_of("smolvlm")
    prompt = vlm.prompt(picture, QUESTION)
    encoded = calls(vlm)
    *_, first = compare_prompt(vlm, prompt, 2, 3)
    assert len(encoded) == 1
    *_, second = compare_prompt(vlm, prompt, 3, 3, full=first.full)
    answers = list(answer_at_layers(vlm, prompt, [1, 2], first.full, 3))
    assert len(encoded) == 1
    assert second.encoded_once
    assert answers[1].run.tokens == first.withdrawn.tokens
    *_, timing = repeat_timing(vlm, prompt, 2, 3, 2)
    assert len(encoded) == 1 + 2 * timing.rounds
    assert len(timing.times("withdrawn", "encode_ms")) == 2
    # A full run always encodes it: its figure stands there.
    *_, again = compare_prompt(vlm, prompt, 2, 3)
    assert again.full.encode_ms is not None


@pytest.mark.parametrize("name", FAMILIES)
def test_what_explains_a_comparison_is_the_same(name, picture, monkeypatch, calls):
    vlm, found = model_of(name), []
    encoded = calls(vlm)
    for long_enough in (float("inf"), 0.0):
        monkeypatch.setattr(timed_generate, "LONG_ENCODING_MS", long_enough)
        prompt = vlm.prompt(picture, QUESTION)
        *_, comparison = compare_prompt(vlm, prompt, 2, 4)
        encoded.clear()
        analysis = Analysis(vlm, prompt, comparison)
        measured = {}
        for part in all_parts(comparison):
            with suppress(UserError):  # a part that can't be known of this model
                result = analysis.of(part.name, part.run)
                measured[part] = result.to_json() if hasattr(result, "to_json") else result
        found.append((len(encoded), {part: of for part, of in measured.items() if part.name != "layer_times"}))
    (often, before), (once, after) = found
    assert after == before
    assert once < often / 3, "only the blank picture's encoding is left"
