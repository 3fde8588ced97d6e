"""How many visual tokens a picture comes to at each detail, by the processors' real classes with their real settings.

The models are small: none is run here, and what a picture comes to depends on its processor alone.
"""

import re
from dataclasses import replace

import pytest
import transformers as hf
from PIL import Image

from tests import hub_figures, saved_models
from vtw_demo import calibrate, compare
from vtw_demo.comparison.calibration import CalibrationStore
from vtw_demo.comparison.samples import Sample
from vtw_demo.errors import UserError
from vtw_demo.measurements.patch_grid import find_patches
from vtw_demo.models import picture_detail
from vtw_demo.models.picture_detail import DETAILS, detail_settings
from vtw_demo.models.processors import ClipProcessor
from vtw_demo.models.registry import KNOWN_MODELS
from vtw_demo.models.vision_language_model import VisionLanguageModel

SHAPES = [(448, 448), (300, 900), (1600, 1200), (97, 130)]
NEXT_TILES = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ONEVISION_TILES = [[rows * 384, columns * 384] for rows in range(1, 7) for columns in range(1, 7)]


def clip(**tokens):
    pictures = hf.CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    return pictures, {"patch_size": 14, **tokens}


def smolvlm(tile, tiles, tokens):
    sizes = {"size": {"longest_edge": tiles * tile}, "max_image_size": {"longest_edge": tile}}
    return hf.SmolVLMImageProcessorPil(**sizes), {"image_seq_len": tokens}


def qwen(patch, fewest, most):
    sizes = {"shortest_edge": fewest, "longest_edge": most}
    return hf.Qwen2VLImageProcessorPil(patch_size=patch, merge_size=2, size=sizes), {}


def internvl():
    pictures = hf.GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}, crop_to_patches=True, max_patches=12)
    return pictures, {"image_seq_length": 256}


# The small family that has the model's processor, the picture's part of the published files, and what else they say of
# how tokens are counted.
PUBLISHED = {
    "LLaVA-1.5": ("llava", clip),
    "Video-LLaVA": (
        "video_llava",
        lambda: (
            hf.VideoLlavaImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}),
            {"patch_size": 14},
        ),
    ),
    "LLaVA-NeXT": (
        "llava_next",
        lambda: (
            hf.LlavaNextImageProcessorPil(
                size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, image_grid_pinpoints=NEXT_TILES
            ),
            {"patch_size": 14},
        ),
    ),
    "Granite": (
        "llava_next",
        lambda: (
            hf.LlavaNextImageProcessorPil(
                size={"shortest_edge": 384},
                crop_size={"height": 384, "width": 384},
                image_grid_pinpoints=hub_figures.GRANITE_TILES,
            ),
            {"patch_size": 14, "num_additional_image_tokens": 0, "vision_feature_select_strategy": "full"},
        ),
    ),
    "LLaVA-OneVision": (
        "llava_onevision",
        lambda: (
            hf.LlavaOnevisionImageProcessorPil(
                size={"height": 384, "width": 384}, image_grid_pinpoints=ONEVISION_TILES
            ),
            {"num_image_tokens": 729, "vision_aspect_ratio": "anyres_max_9"},
        ),
    ),
    "Qwen2.5-VL": ("qwen2_5_vl", lambda: qwen(14, 3136, 12845056)),
    "Qwen3-VL": ("qwen3_vl", lambda: qwen(16, 65536, 16777216)),
    "Qwen3.5": ("qwen3_5", lambda: qwen(16, 65536, 16777216)),
    "InternVL3": ("internvl", internvl),
    "InternVL3.5": ("internvl", internvl),
    "SmolVLM2 256M": ("smolvlm", lambda: smolvlm(512, 4, 64)),
    "SmolVLM2 2.2B": ("smolvlm", lambda: smolvlm(384, 4, 81)),
    "PaliGemma": (
        "paligemma",
        lambda: (
            hf.SiglipImageProcessorPil(size={"height": 448, "width": 448}),
            {"image_seq_length": 1024},
        ),
    ),
    "Gemma 3": (
        "gemma3",
        lambda: (
            hf.Gemma3ImageProcessorPil(size={"height": 896, "width": 896}),
            {"image_seq_length": 256, "full_image_sequence": "<start_of_image>" + "<image_soft_token>" * 256},
        ),
    ),
}
ONE_SIZE = {"LLaVA-1.5": 576, "Video-LLaVA": 256, "PaliGemma": 1024, "Gemma 3": 256}
# Families of which there is no small model here: their image processor, and how it counts.
COUNTED = {
    "GLM-4.6V": ("Glm4vImageProcessorPil", hub_figures.glm),
    "MiniCPM-V": ("MiniCPMV4_6ImageProcessorPil", hub_figures.minicpm),
    "LFM2.5-VL": ("Lfm2VlImageProcessor", hub_figures.lfm2),
}


def model_of(name):
    """A small model with a published model's processor."""
    family, published = PUBLISHED[name]
    model, processor = saved_models.build(family)
    processor.image_processor, counted = published()
    if hasattr(processor, "video_processor"):
        processor.video_processor = ClipProcessor(model.config.model_type, processor.image_processor, {})
    for setting, value in counted.items():
        setattr(processor, setting, value)
    return VisionLanguageModel(name, model, processor)


def counts(vlm, size):
    picture = Image.new("RGB", size, "teal")
    return {detail: vlm.at_detail(detail).picture_tokens(picture) for detail in DETAILS}


def test_every_family_of_the_registry_is_here():
    families = {title.split()[0] for title in PUBLISHED} | COUNTED.keys()
    assert {model.title.split()[0] for model in KNOWN_MODELS} <= families


@pytest.mark.parametrize("name", COUNTED)
def test_more_detail_is_more_tokens_by_the_processor_alone(name):
    kind, count = COUNTED[name]
    try:
        of_detail = {detail: count(**detail_settings(getattr(hf, kind)(), detail, True))(SHAPES) for detail in DETAILS}
    except ImportError as error:
        pytest.skip(str(error))
    for low, usual, high in zip(*of_detail.values(), strict=True):
        assert low <= usual <= high
    assert sum(of_detail["low"]) < sum(of_detail["usual"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_more_detail_is_more_tokens(name):
    vlm, found = model_of(name), []
    for size in SHAPES:
        found.append(counts(vlm, size))
        assert found[-1]["low"] <= found[-1]["usual"] <= found[-1]["high"], size
    for detail in DETAILS:
        is_other = any(of_shape[detail] != of_shape["usual"] for of_shape in found)
        assert is_other == (detail in vlm.details and detail != "usual")
    assert (vlm.details == ("usual",)) == (name in ONE_SIZE)
    if name in ONE_SIZE:
        assert found[0]["usual"] == ONE_SIZE[name]


COUNTS = {
    ("LLaVA-NeXT", (448, 448)): (1176, 2928, 2928),
    ("LLaVA-OneVision", (2000, 1500)): (1317, 7309, 7309),
    ("Qwen2.5-VL", (448, 448)): (256, 256, 1369),
    ("Qwen2.5-VL", (2000, 1500)): (315, 3834, 3834),
    ("Qwen3-VL", (2000, 1500)): (234, 2914, 2914),
    ("InternVL3", (448, 448)): (256, 256, 1280),
    ("InternVL3", (1000, 2000)): (768, 2304, 4864),
    ("SmolVLM2 256M", (448, 448)): (64, 320, 1088),
    ("SmolVLM2 256M", (2000, 1500)): (64, 320, 832),
    ("SmolVLM2 2.2B", (2000, 1500)): (405, 810, 1053),
}


@pytest.mark.parametrize(("name", "size"), COUNTS, ids=str)
def test_how_many_it_is(name, size):
    assert tuple(counts(model_of(name), size).values()) == COUNTS[name, size]


def test_usual_is_the_models_own_but_on_a_cpu():
    vlm = model_of("SmolVLM2 256M")
    assert vlm.details == DETAILS
    elsewhere = replace(vlm, model=vlm.model.to("meta"))
    assert elsewhere.picture_settings == {}
    assert elsewhere.details == ("low", "usual")
    assert tuple(counts(elsewhere, (448, 448)).values()) == (64, 1088, 1088)
    assert elsewhere.at_detail("high").detail == "usual"


def test_a_word_that_is_no_detail_is_refused():
    vlm = model_of("LLaVA-1.5")
    for word in ("tiny", "", None, 3, ["low"]):
        with pytest.raises(UserError, match=f"Unknown picture detail {re.escape(repr(word))}: choose low, usual or"):
            vlm.at_detail(word)
    assert vlm.at_detail("low").detail == "usual"


@pytest.fixture
def small(monkeypatch):
    """A small SmolVLM, for whose tiles the numbers of the table are smaller, too."""
    listed = {"low": {"size": {"longest_edge": saved_models.SIDE}}}
    monkeypatch.setitem(picture_detail._SETTINGS, "SmolVLMImageProcessor", listed)
    model, processor = saved_models.build("smolvlm")
    processor.video_processor = ClipProcessor("smolvlm", processor.image_processor, {})
    return VisionLanguageModel("smolvlm", model, processor)


def test_a_run_and_a_calibration_are_of_their_detail(small, picture, tmp_path):
    low = small.at_detail("low")
    compared = []
    for vlm in (small, low):
        *_, comparison = compare(vlm, picture, "What?", 2, max_new_tokens=2)
        compared.append(comparison)
        prompt = vlm.prompt(picture, "What?")
        assert len(find_patches(vlm, [prompt.shown], prompt.inputs).patches) == comparison.visual_tokens
        assert comparison.visual_tokens == vlm.picture_tokens(picture)
    assert [comparison.detail for comparison in compared] == ["usual", "low"]
    assert compared[0].visual_tokens > compared[1].visual_tokens
    folders = {CalibrationStore.of(vlm, tmp_path).folder for vlm in (small, low, small.at_detail("usual"))}
    assert len(folders) == 2
    sample = Sample("one", picture, "What?")
    *_, calibration = calibrate(low, [sample], store=CalibrationStore.of(low, tmp_path))
    assert calibration.detail == "low"
    assert CalibrationStore.of(low, tmp_path).result() == calibration
    assert CalibrationStore.of(small, tmp_path).result() is None


def test_where_the_grid_is_the_models_own_the_picture_is_shrunk():
    vlm = model_of("LLaVA-NeXT").at_detail("low")
    shown = vlm.shown(Image.new("RGB", (900, 600), "teal"))
    assert shown.size == (336, 224)
    assert vlm.shown(shown).size == (336, 224)
    assert vlm.shown(Image.new("RGB", (90, 60))).size == (90, 60)
