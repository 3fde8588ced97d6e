"""Small random models of many families with the processors that they have on the hub, as folders that `load` takes.

Processors are transformers' own classes, set up as the families' published ones but for smaller pictures; tokenizers
spell text in bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers.video_processing_utils import VideoProcessorMixin

from tests.families import CLIP, HIDDEN, LINEAR_AND_FULL, MROPE, PIXTRAL, SIGLIP, TEXT, VISION
from tests.hub_tokenizers import CHAT_TEMPLATES, HUB_TOKENIZERS

SIDE, PATCH = 48, 8
"""Pixels of a tile's side, and of a patch's: 6 by 6 patches, of which some families merge 2 by 2 into a token."""
TILE = {"height": SIDE, "width": SIDE}
LLAVA_NEXT_TILES = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE], [SIDE, 3 * SIDE], [3 * SIDE, SIDE]]
# As SigLIP's 384 pixels in patches of 14: the last pixels of each tile are in no patch.
UNEVEN_SIDE = SIDE + 3
UNEVEN_TILES = [[rows * UNEVEN_SIDE, columns * UNEVEN_SIDE] for rows in range(1, 5) for columns in range(1, 5)]
TOKENS, MERGED_TOKENS = (SIDE // PATCH) ** 2, (SIDE // PATCH // 2) ** 2


@dataclass(frozen=True)
class SavedFamily:
    """How to build a family's model and processor; both are handed the tokenizer.

    - `special`: the tokens that the processor looks for. Those with a name become attributes of the tokenizer.
    - `image`, `video`: what stands for a picture and for a clip in a chat.
    """

    model: str
    config: Callable[[Any], hf.PreTrainedConfig]
    processor: Callable[[Any], hf.ProcessorMixin]
    special: tuple[str, ...] = ("<image>",)
    named: dict[str, str] = field(default_factory=dict)
    image: str = "<image>"
    video: str = "<video>"
    packages: tuple[str, ...] = ()
    """What the processor needs to be loaded, beside this project's requirements."""


def tokenizer(family: SavedFamily) -> hf.PreTrainedTokenizerFast:
    """One that spells text in bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    spelled = Tokenizer(models.BPE(vocab={byte: number for number, byte in enumerate(alphabet)}, merges=[]))
    spelled.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spelled.decoder = decoders.ByteLevel()
    wrapped = hf.PreTrainedTokenizerFast(
        tokenizer_object=spelled,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        extra_special_tokens=family.named,
    )
    wrapped.add_special_tokens({"additional_special_tokens": list(family.special)}, replace_extra_special_tokens=False)
    return wrapped


def chat_template(image: str, video: str) -> str:
    return (
        "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + image + "{% elif part['type'] == 'video' %}" + video + ""
        "{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )


class NoVideos(VideoProcessorMixin):
    """Stands in for a family's video processor, as which it is saved: without torchvision there is none."""

    def __init__(self, kind: str, **settings: Any) -> None:
        super().__init__()
        self.settings = {"video_processor_type": kind, **settings}

    def to_dict(self) -> dict[str, Any]:
        return self.settings


def text(spelled: Any, **options: Any) -> dict[str, Any]:
    ends = {
        "bos_token_id": spelled.bos_token_id,
        "eos_token_id": spelled.eos_token_id,
        "pad_token_id": spelled.pad_token_id,
    }
    return {**TEXT, **ends, "vocab_size": len(spelled), "max_position_embeddings": 4096, **options}


def tiles(vision: dict[str, Any], side: int = SIDE) -> dict[str, Any]:
    return {**vision, "image_size": side, "patch_size": PATCH}


def llava_like(
    config: type, model_type: str, vision: dict[str, Any], image: str = "<image>", **options: Any
) -> Callable:
    return lambda spelled: config(
        vision_config=vision,
        text_config={"model_type": model_type, **text(spelled)},
        image_token_index=spelled.convert_tokens_to_ids(image),
        **{"vision_feature_layer": -2} | options,
    )


def qwen_like(config: type, vision: dict[str, Any], **options: Any) -> Callable:
    common = {"hidden_size": 16, "patch_size": PATCH, "num_heads": 2, "depth": 2, "intermediate_size": 16}
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {f"vision_{end}_token_id": f"vision_{end}" for end in ("start", "end")}
    return lambda spelled: config(
        vision_config={**common, **vision},
        text_config={**text(spelled), **MROPE, **options},
        **{name: spelled.convert_tokens_to_ids(f"<|{token}|>") for name, token in names.items()},
    )


def llava_processor(spelled: Any) -> hf.ProcessorMixin:
    return hf.LlavaProcessor(
        hf.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=TILE),
        spelled,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def qwen_processor(kind: str) -> Callable[[Any], hf.ProcessorMixin]:
    def make(spelled: Any) -> hf.ProcessorMixin:
        sizes = {"shortest_edge": 32**2, "longest_edge": 112**2}
        pictures = hf.Qwen2VLImageProcessorPil(patch_size=PATCH, merge_size=2, size=sizes)
        videos = NoVideos("Qwen2VLVideoProcessor", size=sizes, fps=2, min_frames=4, max_frames=768)
        return getattr(hf, kind)(pictures, spelled, videos)

    return make


def pixtral_processor(merge: int) -> Callable[[Any], hf.ProcessorMixin]:
    def make(spelled: Any) -> hf.ProcessorMixin:
        pictures = hf.PixtralImageProcessorPil(size={"longest_edge": 2 * SIDE}, patch_size=PATCH)
        return hf.PixtralProcessor(pictures, spelled, patch_size=PATCH, spatial_merge_size=merge)

    return make


QWEN = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN_VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
IDEFICS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")


SAVED: dict[str, SavedFamily] = {
    "llava": SavedFamily(
        "LlavaForConditionalGeneration",
        llava_like(hf.LlavaConfig, "llama", tiles(CLIP)),
        llava_processor,
    ),
    "vipllava": SavedFamily(
        "VipLlavaForConditionalGeneration",
        llava_like(hf.VipLlavaConfig, "llama", tiles(CLIP), vision_feature_layers=(-1, -2)),
        llava_processor,
    ),
    "llava_next": SavedFamily(
        "LlavaNextForConditionalGeneration",
        llava_like(hf.LlavaNextConfig, "mistral", tiles(CLIP), image_grid_pinpoints=LLAVA_NEXT_TILES),
        lambda spelled: hf.LlavaNextProcessor(
            hf.LlavaNextImageProcessorPil(
                size={"shortest_edge": SIDE}, crop_size=TILE, image_grid_pinpoints=LLAVA_NEXT_TILES
            ),
            spelled,
            patch_size=PATCH,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        ),
    ),
    "llava_onevision": SavedFamily(
        "LlavaOnevisionForConditionalGeneration",
        llava_like(
            hf.LlavaOnevisionConfig,
            "qwen2",
            tiles(SIGLIP, UNEVEN_SIDE),
            image_grid_pinpoints=UNEVEN_TILES,
            vision_aspect_ratio="anyres_max_4",
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        ),
        lambda spelled: hf.LlavaOnevisionProcessor(
            hf.LlavaOnevisionImageProcessorPil(
                size={"height": UNEVEN_SIDE, "width": UNEVEN_SIDE}, image_grid_pinpoints=UNEVEN_TILES
            ),
            spelled,
            NoVideos("LlavaOnevisionVideoProcessor"),
            num_image_tokens=TOKENS,
            vision_feature_select_strategy="full",
            vision_aspect_ratio="anyres_max_4",
        ),
        special=("<image>", "<video>"),
    ),
    "video_llava": SavedFamily(
        "VideoLlavaForConditionalGeneration",
        lambda spelled: llava_like(
            hf.VideoLlavaConfig, "llama", tiles(CLIP), video_token_index=spelled.convert_tokens_to_ids("<video>")
        )(spelled),
        lambda spelled: hf.VideoLlavaProcessor(
            hf.VideoLlavaImageProcessor(size={"shortest_edge": SIDE}, crop_size=TILE),
            NoVideos("VideoLlavaVideoProcessor"),
            spelled,
            patch_size=PATCH,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        ),
        special=("<image>", "<video>"),
    ),
    "qwen2_vl": SavedFamily(
        "Qwen2VLForConditionalGeneration",
        qwen_like(hf.Qwen2VLConfig, {"embed_dim": 16, "hidden_size": HIDDEN}),
        qwen_processor("Qwen2VLProcessor"),
        special=QWEN,
        image=QWEN_IMAGE,
        video=QWEN_VIDEO,
    ),
    "qwen2_5_vl": SavedFamily(
        "Qwen2_5_VLForConditionalGeneration",
        qwen_like(hf.Qwen2_5_VLConfig, {"out_hidden_size": HIDDEN, "fullatt_block_indexes": [1], "window_size": 32}),
        qwen_processor("Qwen2_5_VLProcessor"),
        special=QWEN,
        image=QWEN_IMAGE,
        video=QWEN_VIDEO,
    ),
    "qwen3_vl": SavedFamily(
        "Qwen3VLForConditionalGeneration",
        qwen_like(
            hf.Qwen3VLConfig,
            {"out_hidden_size": HIDDEN, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
            head_dim=8,
        ),
        qwen_processor("Qwen3VLProcessor"),
        special=QWEN,
        image=QWEN_IMAGE,
        video=QWEN_VIDEO,
    ),
    "qwen3_5": SavedFamily(
        "Qwen3_5ForConditionalGeneration",
        qwen_like(hf.Qwen3_5Config, {"out_hidden_size": HIDDEN, "num_position_embeddings": 16}, **LINEAR_AND_FULL),
        qwen_processor("Qwen3VLProcessor"),
        special=QWEN,
        image=QWEN_IMAGE,
        video=QWEN_VIDEO,
    ),
    "internvl": SavedFamily(
        "InternVLForConditionalGeneration",
        lambda spelled: hf.InternVLConfig(
            vision_config={**VISION, "image_size": (SIDE, SIDE), "patch_size": (PATCH, PATCH)},
            text_config={"model_type": "qwen2", **text(spelled)},
            image_token_id=spelled.convert_tokens_to_ids("<IMG_CONTEXT>"),
            image_seq_length=MERGED_TOKENS,
        ),
        lambda spelled: hf.InternVLProcessor(
            hf.GotOcr2ImageProcessorPil(size=TILE, crop_to_patches=True, max_patches=6),
            spelled,
            NoVideos("InternVLVideoProcessor"),
            image_seq_length=MERGED_TOKENS,
        ),
        special=(),
        named={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        image="<IMG_CONTEXT>",
    ),
    "idefics3": SavedFamily(
        "Idefics3ForConditionalGeneration",
        lambda spelled: hf.Idefics3Config(
            vision_config=tiles(VISION),
            text_config={"model_type": "llama", **text(spelled)},
            image_token_id=spelled.convert_tokens_to_ids("<image>"),
            scale_factor=2,
        ),
        lambda spelled: hf.Idefics3Processor(
            hf.Idefics3ImageProcessorPil(size={"longest_edge": 3 * SIDE}, max_image_size={"longest_edge": SIDE}),
            spelled,
            image_seq_len=MERGED_TOKENS,
        ),
        special=IDEFICS,
    ),
    "smolvlm": SavedFamily(
        "SmolVLMForConditionalGeneration",
        lambda spelled: hf.SmolVLMConfig(
            vision_config=tiles(VISION),
            text_config={"model_type": "llama", **text(spelled)},
            image_token_id=spelled.convert_tokens_to_ids("<image>"),
            scale_factor=2,
        ),
        lambda spelled: hf.SmolVLMProcessor(
            hf.SmolVLMImageProcessorPil(size={"longest_edge": 3 * SIDE}, max_image_size={"longest_edge": SIDE}),
            spelled,
            NoVideos("SmolVLMVideoProcessor"),
            image_seq_len=MERGED_TOKENS,
        ),
        special=IDEFICS,
    ),
    "gemma3": SavedFamily(
        "Gemma3ForConditionalGeneration",
        lambda spelled: hf.Gemma3Config(
            text_config=text(
                spelled, head_dim=8, layer_types=["sliding_attention", "full_attention"] * 2, sliding_window=512
            ),
            vision_config=tiles(SIGLIP),
            image_token_index=spelled.convert_tokens_to_ids("<image_soft_token>"),
            boi_token_index=spelled.convert_tokens_to_ids("<start_of_image>"),
            eoi_token_index=spelled.convert_tokens_to_ids("<end_of_image>"),
            mm_tokens_per_image=MERGED_TOKENS,
        ),
        lambda spelled: hf.Gemma3Processor(
            hf.Gemma3ImageProcessorPil(size=TILE), spelled, image_seq_length=MERGED_TOKENS
        ),
        special=(),
        named={"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
        image="<start_of_image>",
    ),
    "paligemma": SavedFamily(
        "PaliGemmaForConditionalGeneration",
        lambda spelled: hf.PaliGemmaConfig(
            vision_config={**tiles(SIGLIP), "projection_dim": HIDDEN},
            text_config={"model_type": "gemma", **text(spelled, head_dim=8)},
            image_token_index=spelled.convert_tokens_to_ids("<image>"),
            projection_dim=HIDDEN,
            hidden_size=HIDDEN,
        ),
        lambda spelled: hf.PaliGemmaProcessor(hf.SiglipImageProcessorPil(size=TILE, image_seq_length=TOKENS), spelled),
    ),
    "mistral3": SavedFamily(
        "Mistral3ForConditionalGeneration",
        llava_like(
            hf.Mistral3Config,
            "mistral",
            {**tiles(PIXTRAL), "image_size": 2 * SIDE},
            "[IMG]",
            spatial_merge_size=2,
            vision_feature_layer=-1,
        ),
        pixtral_processor(2),
        special=("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        image="[IMG]",
        packages=("torchvision",),
    ),
    "pixtral (in llava)": SavedFamily(
        "LlavaForConditionalGeneration",
        llava_like(
            hf.LlavaConfig,
            "mistral",
            {**tiles(PIXTRAL), "image_size": 2 * SIDE},
            "[IMG]",
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        ),
        pixtral_processor(1),
        special=("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        image="[IMG]",
        packages=("torchvision",),
    ),
}
FAMILIES: tuple[str, ...] = tuple(SAVED)


def missing_packages(name: str) -> tuple[str, ...]:
    """What a family's folder needs to be loaded and isn't installed."""
    return tuple(package for package in SAVED[name].packages if find_spec(package) is None)


def build(name: str, as_on_hub: bool = False) -> tuple[Any, Any]:
    """A family's model, always with the same random weights, and its processor.

    Its processor has no part for videos. `as_on_hub`: with the tokenizer's class, its added tokens and the chat
    template of the published models. Raises ImportError where a package is missing.
    """
    family = SAVED[name]
    spelled = HUB_TOKENIZERS[name]() if as_on_hub else tokenizer(family)
    with mock.patch.object(hf.ProcessorMixin, "check_argument_for_proper_class"):
        processor = family.processor(spelled)
    processor.chat_template = chat_template(family.image, family.video)
    if as_on_hub:
        template = CHAT_TEMPLATES[name].replace("IMAGE", family.image).replace("VIDEO", family.video)
        processor.chat_template = template
    torch.manual_seed(0)
    # A processor may have added tokens to its tokenizer, which the model's vocabulary must hold.
    model = getattr(hf, family.model)(family.config(processor.tokenizer)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            # transformers leaves gemma3's projection at 0.
            nn.init.normal_(parameter, std=0.1)
    return model, processor


def save(name: str, folder: Path, as_on_hub: bool = False) -> None:
    """Write a family's model and processor into a folder, as one from the hub has them. Raises what `build` does."""
    for part in build(name, as_on_hub):
        part.save_pretrained(folder)


def save_small(folder: Path, hidden_size: int = 64) -> None:
    """Write a model that answers what the embedded one does in a tenth of its time.

    Its layers, its tokens and the visual tokens of a picture are as many, and each picture, question and withdrawal
    layer has answers of its own, of a few tokens, since a third of all end one; its weights are few and random.
    """
    from vtw_demo.models.loading import EMBEDDED_FOLDER

    shutil.copytree(EMBEDDED_FOLDER, folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    config = hf.AutoConfig.from_pretrained(EMBEDDED_FOLDER)
    vars(config).pop("quantization_config", None)
    small = {"num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 32}
    vars(config.vision_config).update(small, num_hidden_layers=1, projection_dim=32)
    vars(config.text_config).update(small, hidden_size=hidden_size, num_key_value_heads=1, head_dim=16)
    torch.manual_seed(10)
    model = hf.AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    model.generation_config.eos_token_id = list(range(2, config.text_config.vocab_size, 3))
    model.save_pretrained(folder)
