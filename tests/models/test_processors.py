"""Processors of older files, which leave out what visual tokens are counted by, of files without a chat template, and
of MiniCPM-V, whose video processor is asked for its settings."""

import json

import pytest
import torch
import transformers as hf
from PIL import Image

from tests import saved_models
from tests.families import CLIP, LINEAR_AND_FULL, MROPE, SIGLIP, VISION
from vtw_demo import load
from vtw_demo.comparison.compare import compare

COUNTED = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens", "num_image_tokens")
# 36 patches of a tile; of a wide picture LLaVA-NeXT sees the whole and two tiles, with an end after each row.
EXPECTED = {"llava": 36, "vipllava": 36, "video_llava": 36, "llava_next": 36 + 72 + 6, "llava_onevision": None}


def separate(folder, left_out):
    """Settings as older versions saved them: of pictures in one file, of the processor, less `left_out`, in another."""
    file = folder / "processor_config.json"
    settings = json.loads(file.read_text())
    pictures = settings.pop("image_processor")
    videos = settings.pop("video_processor", None)
    file.unlink()
    kept = {name: value for name, value in settings.items() if name not in left_out}
    if kept.keys() & set(COUNTED):
        file.write_text(json.dumps(kept))
    (folder / "preprocessor_config.json").write_text(
        json.dumps({**pictures, "processor_class": settings["processor_class"]})
    )
    if videos is not None:
        (folder / "video_preprocessor_config.json").write_text(json.dumps(videos))


@pytest.mark.parametrize("left_out", [COUNTED, COUNTED[:1], COUNTED[1:2], COUNTED[2:3], COUNTED[:2]], ids=str)
@pytest.mark.parametrize("family", EXPECTED)
def test_it_is_taken_from_the_configuration(family, left_out, tmp_path):
    saved_models.save(family, tmp_path / "whole", as_on_hub=family != "vipllava")
    saved_models.save(family, tmp_path / "older", as_on_hub=family != "vipllava")
    separate(tmp_path / "older", left_out)
    whole, older = (load(str(tmp_path / name), device="cpu") for name in ("whole", "older"))
    picture = Image.new("RGB", (96, 48), "red")
    inputs = older.prepare(picture, "What?")
    assert torch.equal(inputs["input_ids"], whole.prepare(picture, "What?")["input_ids"])
    if EXPECTED[family]:
        assert older.visual_tokens(inputs) == EXPECTED[family]
    *_, comparison = compare(older, picture, "What?", 2, max_new_tokens=2)
    assert comparison.visual_tokens == older.visual_tokens(inputs)


@pytest.mark.parametrize(("tower", "strategy", "tokens"), [("siglip", "full", 36), ("clip", "full", 37)])
def test_towers_with_and_without_a_class_token(tower, strategy, tokens, tmp_path):
    vision = saved_models.tiles(SIGLIP if tower == "siglip" else CLIP)
    model, processor = saved_models.build("llava")
    config = model.config.to_dict() | {"vision_config": vision, "vision_feature_select_strategy": strategy}
    made = type(model)(type(model.config).from_dict(config))
    for part in (made, processor):
        part.save_pretrained(tmp_path)
    separate(tmp_path, COUNTED)
    vlm = load(str(tmp_path), device="cpu")
    assert vlm.visual_tokens(vlm.prepare(Image.new("RGB", (60, 60), "red"), "What?")) == tokens


def test_paligemma_is_asked_as_its_card_says(tmp_path):
    for part in saved_models.build("paligemma"):
        part.chat_template = None
        part.save_pretrained(tmp_path)
    vlm = load(str(tmp_path), device="cpu")
    inputs = vlm.prepare(Image.new("RGB", (96, 48), "red"), "What?")
    prompt = vlm.processor.tokenizer.decode(inputs["input_ids"][0])
    assert prompt == "<image>" * saved_models.TOKENS + "<bos>answer en What?\n"


def test_minicpm_is_loaded_without_torchvision(tmp_path):
    marks = {
        f"{kind}_{end}_token": f"<{kind}_{end}>" for kind in ("image", "slice", "image_id") for end in ("start", "end")
    }
    family = saved_models.SavedFamily(
        "MiniCPMV4_6ForConditionalGeneration",
        lambda spelled: hf.MiniCPMV4_6Config(
            vision_config={**VISION, "image_size": saved_models.SIDE, "patch_size": 4},
            text_config={"model_type": "qwen3_5_text", **saved_models.text(spelled), **MROPE, **LINEAR_AND_FULL},
            insert_layer_id=0,
            image_token_id=spelled.convert_tokens_to_ids("<|image_pad|>"),
            video_token_id=spelled.convert_tokens_to_ids("<|video_pad|>"),
        ),
        processor=lambda spelled: None,
        special=(),
        named={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>", **marks},
    )
    spelled = saved_models.tokenizer(family)
    spelled.chat_template = saved_models.chat_template("<|image_pad|>", "<|video_pad|>")
    for part in (spelled, hf.MiniCPMV4_6ForConditionalGeneration(family.config(spelled))):
        part.save_pretrained(tmp_path)
    pictures = {"patch_size": 4, "scale_resolution": saved_models.SIDE, "max_slice_nums": 4, "slice_mode": True}
    settings = {
        "processor_class": "MiniCPMV4_6Processor",
        "image_processor": {"image_processor_type": "MiniCPMV4_6ImageProcessor", **pictures},
        "video_processor": {"video_processor_type": "MiniCPMV4_6VideoProcessor", **pictures},
    }
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    vlm = load(str(tmp_path), device="cpu")
    *_, comparison = compare(vlm, Image.new("RGB", (96, 48), "red"), "What?", 2, max_new_tokens=2)
    # The whole picture and two slices: four by four patches become a token.
    assert comparison.visual_tokens == 26
