"""Families of vision-language models: configurations of small random models, and pictures and videos for them."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

LAYERS = 4
VOCABULARY = 100
START, END, VIDEO, IMAGE = 96, 97, 98, 99
"""The last tokens of the vocabulary, which no answer may hold."""
SPECIAL = tuple(range(90, VOCABULARY))
HIDDEN = 32

TEXT = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
CLIP = {"model_type": "clip_vision_model", "projection_dim": 16, **VISION}
SIGLIP = {"model_type": "siglip_vision_model", **VISION}
PIXTRAL = {"model_type": "pixtral", **VISION, "head_dim": 8}


def text(model_type: str, **options: Any) -> dict[str, Any]:
    return {"model_type": model_type, **TEXT, **options}


def pixels(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(shape[0]))


def pictures(count: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": pixels(count, 3, 8, 8)}


def sized_pictures(count: int) -> dict[str, torch.Tensor]:
    return {**pictures(count), "image_sizes": torch.tensor([[8, 8]] * count)}


def tiled_pictures(count: int) -> dict[str, torch.Tensor]:
    """A tall picture as an overview and two tiles."""
    return {"pixel_values": pixels(count, 3, 3, 8, 8), "image_sizes": torch.tensor([[16, 8]] * count)}


def nested_pictures(count: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": pixels(count, 1, 3, 8, 8)}


def videos(count: int) -> dict[str, torch.Tensor]:
    return {"pixel_values_videos": pixels(count, 2, 3, 8, 8)}


def patches(name: str, grid: str, frames: int) -> Callable[[int], dict[str, torch.Tensor]]:
    """Four by four flattened patches of 4 pixels, each over two frames, as the Qwen families take them."""

    def make(count: int) -> dict[str, torch.Tensor]:
        return {
            name: pixels(count * frames * 16, 3 * 2 * 4 * 4),
            grid: torch.tensor([[frames, 4, 4]] * count),
        }

    return make


def positioned_patches(count: int) -> dict[str, torch.Tensor]:
    grid = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    return {
        "pixel_values": pixels(count, 16, 3 * 4 * 4).sigmoid(),
        "image_position_ids": grid.expand(count, -1, -1).contiguous(),
    }


def positioned_frames(count: int) -> dict[str, torch.Tensor]:
    frames = positioned_patches(count * 2)
    if "num_frames_per_video" not in inspect.signature(hf.Gemma4ForConditionalGeneration.forward).parameters:
        # Up to 5.17 with a dimension for the frames of a video.
        frames = {name: tensor.unflatten(0, (count, 2)) for name, tensor in frames.items()}
    return {
        "pixel_values_videos": frames["pixel_values"],
        "video_position_ids": frames["image_position_ids"],
        "num_frames_per_video": torch.tensor([2] * count),
    }


def pooled_patches(count: int) -> dict[str, torch.Tensor]:
    """One crop of 2 by 2 patches a picture; each visual token pools one patch."""
    return {
        "pixel_values": pixels(count, 4, 3 * 4 * 4),
        "image_token_pooling": torch.arange(count * 4)[:, None],
        "image_grids": torch.tensor([[2, 2, 0, 0]] * count),
    }


@dataclass(frozen=True)
class Family:
    """How to build a family's tiny model, and what it takes beside token ids.

    - `images` and `videos` make the inputs for a number of pictures or videos; None if it takes none.
    - `around` is put round each picture's placeholders.
    - `token_types` is the name of the input that tells images (1) and videos (2) from text (0); with
      `one_type`, all are 0.
    """

    model: str
    config: Callable[[], hf.PreTrainedConfig]
    images: Callable[[int], dict[str, torch.Tensor]] = pictures
    videos: Callable[[int], dict[str, torch.Tensor]] | None = None
    around: bool = False
    token_types: str | None = None
    one_type: bool = False
    video_is_image: bool = False
    """Whether videos have the placeholders of images; such a family takes one or the other in a prompt."""
    vision: Callable[[Any], nn.Module] | None = None
    """Makes a stand-in for a vision encoder that needs a package which isn't there."""
    tokens: int | None = None
    """How many tokens a picture becomes, where the model doesn't tell."""
    masks: bool = True
    """Whether a token that no other attends to is one that is gone. Not so in recurrent layers, nor in indexers."""


NEEDS_TIMM = ("timm_wrapper", "gemma3n_vision", "gemma3n_audio")


class Convolution(nn.Module):
    """Stands in for a vision encoder of timm: one feature of each patch of 4 by 4 pixels."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, 16, kernel_size=4, stride=4)

    def forward(self, pixel_values: torch.Tensor, **options: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=self.project(pixel_values))


class ConvolutionSequence(Convolution):
    """The same as a sequence, a class token first."""

    def forward(self, pixel_values: torch.Tensor, **options: Any) -> BaseModelOutputWithPooling:
        features = self.project(pixel_values).flatten(2).mT
        return BaseModelOutputWithPooling(last_hidden_state=nn.functional.pad(features, (0, 0, 1, 0)))


def llava_like(
    config: Any, model_type: str = "llama", vision: dict = CLIP, text_options: Mapping[str, Any] = {}, **options: Any
) -> Callable:
    return lambda: config(
        vision_config=vision,
        text_config=text(model_type, **text_options),
        image_token_index=IMAGE,
        **{"vision_feature_layer": -1} | options,
    )


def qwen_like(config: Any, vision: dict[str, Any], **options: Any) -> Callable:
    common = {"hidden_size": 16, "patch_size": 4, "num_heads": 2, "depth": 2, "intermediate_size": 16}
    return lambda: config(
        vision_config={**common, **vision},
        text_config={**TEXT, **MROPE, **options},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        image_start_token_id=START,
        image_end_token_id=END,
    )


def gemma3(sliding_window: int) -> Callable:
    kinds = ["full_attention", "sliding_attention"] * 2
    return lambda: hf.Gemma3Config(
        text_config={**TEXT, "head_dim": 8, "layer_types": kinds, "sliding_window": sliding_window},
        vision_config=SIGLIP,
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
        mm_tokens_per_image=4,
    )


GEMMA_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "patch_size": 4,
    "pooling_kernel_size": 2,
    "position_embedding_size": 16,
}
GEMMA_SHARED = {
    **TEXT,
    "head_dim": 8,
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}

LINEAR_AND_FULL = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "head_dim": 8,
    "partial_rotary_factor": 1.0,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
QWEN3_5_VISION = {"out_hidden_size": HIDDEN, "num_position_embeddings": 16}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
# With few heads, many of an indexer's scores would be 0, and it would choose at random among them.
INDEXER = {"index_n_heads": 16, "index_head_dim": 8, "index_topk": 5}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
}


def minicpm(config: Any, **options: Any) -> Callable:
    # Four by four patches of a picture become two by two tokens.
    return lambda: config(
        vision_config={**VISION, "insert_layer_id": 0},
        text_config={"model_type": "qwen3_5_text", **TEXT, **MROPE, **LINEAR_AND_FULL},
        insert_layer_id=0,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        downsample_mode="4x",
        **options,
    )


def packed_patches(count: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": pixels(1, 3, 4, count * 16 * 4), "target_sizes": torch.tensor([[4, 4]] * count)}


def padded_patches(count: int) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": pixels(count, 16, 3 * 4 * 4),
        "pixel_attention_mask": torch.ones(count, 16, dtype=torch.long),
        "spatial_shapes": torch.tensor([[4, 4]] * count),
    }


QWEN_IMAGES = patches("pixel_values", "image_grid_thw", 1)
QWEN_VIDEOS = patches("pixel_values_videos", "video_grid_thw", 2)
ONE_FRAME = patches("pixel_values_videos", "video_grid_thw", 1)
"""For families that put text between frames, so that each frame is a video to `prompt`."""

# Before there were types of tokens, it told videos by tokens that prompts here don't have.
GLM_HAS_TYPES = "mm_token_type_ids" in inspect.signature(hf.Glm4vForConditionalGeneration.forward).parameters

_FAMILIES: dict[str, Family] = {
    "llava": Family("LlavaForConditionalGeneration", llava_like(hf.LlavaConfig)),
    "llava_next": Family(
        "LlavaNextForConditionalGeneration",
        llava_like(hf.LlavaNextConfig, image_grid_pinpoints=[[16, 8]]),
        tiled_pictures,
    ),
    "llava_next_video": Family(
        "LlavaNextVideoForConditionalGeneration",
        llava_like(hf.LlavaNextVideoConfig, video_token_index=VIDEO, image_grid_pinpoints=[[16, 8]]),
        tiled_pictures,
        videos,
    ),
    "llava_onevision": Family(
        "LlavaOnevisionForConditionalGeneration",
        llava_like(
            hf.LlavaOnevisionConfig,
            "qwen2",
            SIGLIP,
            video_token_index=VIDEO,
            image_grid_pinpoints=[[16, 8]],
        ),
        tiled_pictures,
        videos,
    ),
    "video_llava": Family(
        "VideoLlavaForConditionalGeneration",
        llava_like(hf.VideoLlavaConfig, video_token_index=VIDEO),
        lambda count: {"pixel_values_images": pixels(count, 3, 8, 8)},
        lambda count: {"pixel_values_videos": pixels(count, 8, 3, 8, 8)},
    ),
    "vipllava": Family(
        "VipLlavaForConditionalGeneration",
        llava_like(hf.VipLlavaConfig, vision_feature_layer=(-1, -2), vision_feature_layers=(-1, -2)),
    ),
    "pixtral (in llava)": Family(
        "LlavaForConditionalGeneration",
        llava_like(hf.LlavaConfig, "mistral", PIXTRAL, vision_feature_select_strategy="full"),
        sized_pictures,
    ),
    "mistral3": Family(
        "Mistral3ForConditionalGeneration",
        llava_like(hf.Mistral3Config, "mistral", {**PIXTRAL, "image_size": 16}, spatial_merge_size=2),
        lambda count: {
            "pixel_values": pixels(count, 3, 16, 16),
            "image_sizes": torch.tensor([[16, 16]] * count),
        },
    ),
    "internvl": Family(
        "InternVLForConditionalGeneration",
        lambda: hf.InternVLConfig(
            vision_config={**VISION, "image_size": (16, 16), "patch_size": (4, 4)},
            text_config=text("qwen2"),
            image_token_id=IMAGE,
        ),
        lambda count: {"pixel_values": pixels(count, 3, 16, 16)},
    ),
    "idefics2": Family(
        "Idefics2ForConditionalGeneration",
        lambda: hf.Idefics2Config(
            vision_config=VISION,
            perceiver_config={
                "hidden_size": HIDDEN,
                "resampler_n_latents": 4,
                "resampler_depth": 1,
                "resampler_n_heads": 2,
                "resampler_head_dim": 8,
                "num_key_value_heads": 1,
            },
            text_config=text("mistral"),
            image_token_id=IMAGE,
        ),
        nested_pictures,
    ),
    "idefics3": Family(
        "Idefics3ForConditionalGeneration",
        lambda: hf.Idefics3Config(
            vision_config={**VISION, "image_size": 16}, text_config=text("llama"), image_token_id=IMAGE
        ),
        lambda count: {"pixel_values": pixels(count, 1, 3, 16, 16)},
    ),
    "smolvlm": Family(
        "SmolVLMForConditionalGeneration",
        lambda: hf.SmolVLMConfig(
            vision_config={**VISION, "image_size": 16}, text_config=text("llama"), image_token_id=IMAGE
        ),
        lambda count: {"pixel_values": pixels(count, 1, 3, 16, 16)},
    ),
    "paligemma": Family(
        "PaliGemmaForConditionalGeneration",
        lambda: hf.PaliGemmaConfig(
            vision_config={**SIGLIP, "projection_dim": HIDDEN},
            text_config=text("gemma", head_dim=8),
            image_token_index=IMAGE,
            projection_dim=HIDDEN,
            hidden_size=HIDDEN,
        ),
        token_types="token_type_ids",
        one_type=True,  # all of a prompt is a prefix, in which attention goes both ways
    ),
    "gemma3": Family("Gemma3ForConditionalGeneration", gemma3(64), around=True, token_types="token_type_ids"),
    "gemma3 (window shorter than the prompt)": Family(
        "Gemma3ForConditionalGeneration", gemma3(8), around=True, token_types="token_type_ids"
    ),
    "gemma3n": Family(
        "Gemma3nForConditionalGeneration",
        lambda: hf.Gemma3nConfig(
            text_config={**GEMMA_SHARED, "altup_num_inputs": 2, "laurel_rank": 4},
            vision_config={"hidden_size": 16, "vocab_size": 4, "vocab_offset": 92},
            audio_config={"hidden_size": 16, "vocab_size": 4, "vocab_offset": 96},
            image_token_id=95,
            vision_soft_tokens_per_image=4,
            boi_token_id=90,
            eoi_token_id=91,
            audio_token_id=99,
        ),
        vision=Convolution,
    ),
    "gemma4": Family(
        "Gemma4ForConditionalGeneration",
        lambda: hf.Gemma4Config(
            text_config=GEMMA_SHARED,
            vision_config=GEMMA_VISION,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            boi_token_id=START,
            eoi_token_id=END,
            audio_token_id=95,
        ),
        positioned_patches,
        positioned_frames,
        token_types="mm_token_type_ids",
        around=True,
    ),
    "aya_vision": Family(
        "AyaVisionForConditionalGeneration",
        llava_like(
            hf.AyaVisionConfig,
            "cohere2",
            {**SIGLIP, "image_size": 16},
            vision_feature_select_strategy="full",
        ),
        lambda count: {"pixel_values": pixels(count, 3, 16, 16)},
    ),
    "cohere2_vision": Family(
        "Cohere2VisionForConditionalGeneration",
        lambda: hf.Cohere2VisionConfig(
            vision_config={**SIGLIP, "image_size": 16},
            text_config=text("cohere2", sliding_window=8, layer_types=["sliding_attention"] * 3 + ["full_attention"]),
            image_token_id=IMAGE,
            alignment_intermediate_size=32,
        ),
        lambda count: {"pixel_values": pixels(count, 3, 16, 16)},
    ),
    "fast_vlm": Family(
        "FastVlmForConditionalGeneration",
        lambda: hf.FastVlmConfig(
            vision_config={"model_type": "timm_wrapper", "hidden_size": 16, "architecture": "fastvit_mci3"},
            text_config=text("qwen2"),
            image_token_index=IMAGE,
        ),
        vision=Convolution,
    ),
    "perception_lm": Family(
        "PerceptionLMForConditionalGeneration",
        lambda: hf.PerceptionLMConfig(
            vision_config={
                "model_type": "timm_wrapper",
                "architecture": "vit_pe_core_large_patch14_336",
                "model_args": {"embed_dim": 16},
            },
            text_config=text("llama"),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            tie_word_embeddings=False,
        ),
        nested_pictures,
        videos,
        vision=ConvolutionSequence,
    ),
    "ovis2": Family(
        "Ovis2ForConditionalGeneration",
        lambda: hf.Ovis2Config(
            vision_config={**VISION, "vocab_size": 20},
            text_config=text("qwen2"),
            image_token_id=IMAGE,
            visual_indicator_token_ids=(90, 91, 92, 93, 94),
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
        ),
    ),
    "deepseek_vl": Family(
        "DeepseekVLForConditionalGeneration",
        lambda: hf.DeepseekVLConfig(vision_config=SIGLIP, text_config=text("llama"), image_token_id=IMAGE),
    ),
    "aria": Family(
        "AriaForConditionalGeneration",
        lambda: hf.AriaConfig(
            vision_config={"model_type": "idefics3_vision", **VISION},
            text_config=text("aria_text", moe_num_experts=4),
            projector_patch_to_query_dict={4: 4},
            image_token_index=IMAGE,
        ),
    ),
    "molmo2": Family(
        "Molmo2ForConditionalGeneration",
        lambda: hf.Molmo2Config(
            vision_config={**VISION, "num_key_value_heads": 2, "head_dim": 8, "image_size": [8, 8]},
            adapter_config={
                "hidden_size": 16,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "intermediate_size": 16,
                "text_hidden_size": HIDDEN,
                "vision_feature_layer": [-1],
            },
            text_config={**TEXT, "head_dim": 8, "vocab_size": 90, "additional_vocab_size": 10},
            image_patch_id=IMAGE,
            image_start_token_id=START,
            image_end_token_id=END,
        ),
        pooled_patches,
        lambda count: {
            "pixel_values_videos": pixels(count, 4, 3 * 4 * 4),
            "video_token_pooling": torch.arange(count * 4)[:, None],
            "video_grids": torch.tensor([[1, 2, 2]] * count),
        },
        video_is_image=True,
        token_types="mm_token_type_ids",
        around=True,
    ),
    "qwen2_vl": Family(
        "Qwen2VLForConditionalGeneration",
        qwen_like(hf.Qwen2VLConfig, {"embed_dim": 16, "hidden_size": HIDDEN}),
        QWEN_IMAGES,
        QWEN_VIDEOS,
        around=True,
        token_types="mm_token_type_ids",
    ),
    "qwen2_5_vl": Family(
        "Qwen2_5_VLForConditionalGeneration",
        qwen_like(
            hf.Qwen2_5_VLConfig,
            {"out_hidden_size": HIDDEN, "fullatt_block_indexes": [1], "window_size": 8},
        ),
        QWEN_IMAGES,
        QWEN_VIDEOS,
        around=True,
        token_types="mm_token_type_ids",
    ),
    "qwen3_vl": Family(
        "Qwen3VLForConditionalGeneration",
        qwen_like(
            hf.Qwen3VLConfig,
            {
                "out_hidden_size": HIDDEN,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0, 1],
            },
            head_dim=8,
        ),
        QWEN_IMAGES,
        ONE_FRAME,
        around=True,
        token_types="mm_token_type_ids",
    ),
    "qwen3_vl_moe": Family(
        "Qwen3VLMoeForConditionalGeneration",
        qwen_like(
            hf.Qwen3VLMoeConfig,
            {
                "out_hidden_size": HIDDEN,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0, 1],
            },
            head_dim=8,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
        ),
        QWEN_IMAGES,
        ONE_FRAME,
        around=True,
        token_types="mm_token_type_ids",
    ),
    "glm4v": Family(
        "Glm4vForConditionalGeneration",
        qwen_like(hf.Glm4vConfig, {"out_hidden_size": HIDDEN, "image_size": 16}),
        QWEN_IMAGES,
        ONE_FRAME if GLM_HAS_TYPES else None,
        around=True,
        video_is_image=True,
        token_types="mm_token_type_ids",
    ),
    "llama4": Family(
        "Llama4ForConditionalGeneration",
        lambda: hf.Llama4Config(
            text_config={
                **TEXT,
                "head_dim": 8,
                "intermediate_size_mlp": 48,
                "num_local_experts": 2,
                "attention_chunk_size": 8,
                "no_rope_layer_interval": 2,
                "floor_scale": 4,
                "attn_scale": 0.5,
            },
            vision_config={
                **VISION,
                "image_size": 16,
                "vision_output_dim": 16,
                "projector_input_dim": 16,
                "projector_output_dim": 16,
                "intermediate_size": 64,
            },
            image_token_index=IMAGE,
            boi_token_index=START,
            eoi_token_index=END,
            pad_token_id=0,
        ),
        lambda count: {"pixel_values": pixels(count, 3, 16, 16)},
    ),
    "qwen3_5": Family(
        "Qwen3_5ForConditionalGeneration",
        qwen_like(getattr(hf, "Qwen3_5Config", None), QWEN3_5_VISION, **LINEAR_AND_FULL),
        QWEN_IMAGES,
        ONE_FRAME,
        around=True,
        token_types="mm_token_type_ids",
        masks=False,
    ),
    "qwen3_5_moe": Family(
        "Qwen3_5MoeForConditionalGeneration",
        qwen_like(getattr(hf, "Qwen3_5MoeConfig", None), QWEN3_5_VISION, **LINEAR_AND_FULL, **EXPERTS),
        QWEN_IMAGES,
        ONE_FRAME,
        around=True,
        token_types="mm_token_type_ids",
        masks=False,
    ),
    "minicpm_ocr": Family(
        "MiniCPMOcrForConditionalGeneration",
        minicpm(getattr(hf, "MiniCPMOcrConfig", None)),
        packed_patches,
        around=True,
        masks=False,
    ),
    "minicpmv4_6": Family(
        "MiniCPMV4_6ForConditionalGeneration",
        minicpm(getattr(hf, "MiniCPMV4_6Config", None)),
        packed_patches,
        around=True,
        masks=False,
    ),
    "minicpmv4_7": Family(
        "MiniCPMV4_7ForConditionalGeneration",
        minicpm(
            getattr(hf, "MiniCPMV4_7Config", None),
            image_start_id=START,
            image_end_id=END,
            slice_start_id=90,
            slice_end_id=91,
            newline_id=92,
        ),
        packed_patches,
        around=True,
        token_types="mm_token_type_ids",
        masks=False,
    ),
    "lfm2_vl": Family(
        "Lfm2VlForConditionalGeneration",
        lambda: hf.Lfm2VlConfig(
            # From the last layer on none attends.
            text_config=text("lfm2", layer_types=["conv", "full_attention", "full_attention", "conv"]),
            vision_config={"model_type": "siglip2_vision_model", **VISION, "num_patches": 16},
            image_token_id=IMAGE,
            projector_hidden_size=16,
        ),
        padded_patches,
        masks=False,
    ),
    "lfm3_vl": Family(
        "Lfm3VlForConditionalGeneration",
        lambda: hf.Lfm3VlConfig(
            text_config=text(
                "lfm3",
                head_dim=8,
                sliding_window=8,
                layer_types=["conv", "sliding_attention", "conv", "full_attention"],
            ),
            vision_config={**VISION, "num_key_value_heads": 1},
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=START,
            vision_end_token_id=END,
            projector_hidden_size=16,
        ),
        QWEN_IMAGES,
        ONE_FRAME,
        masks=False,
    ),
    "nemotron_h_omni": Family(
        "NemotronH_Omni_Reasoning_V3",
        lambda: hf.NemotronH_Omni_Reasoning_V3_Config(
            text_config=text(
                "nemotron_h",
                layer_types=["mlp", "linear_attention", "full_attention", "moe"],
                head_dim=8,
                ssm_state_size=8,
                mamba_num_heads=4,
                mamba_head_dim=16,
                n_groups=2,
                chunk_size=4,
                time_step_min=1e-12,  # by which it clamps in prefill, but not in decoding
                n_routed_experts=4,
                moe_intermediate_size=16,
                moe_shared_expert_intermediate_size=16,
            ),
            vision_config={
                "model_type": "radio",
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "mlp_ratio": 1.0,
                "patch_size": 4,
                "image_size": 16,
                "max_img_size": 16,
                "video_temporal_patch_size": 2,
            },
            vision_hidden_size=16,
            projector_hidden_size=16,
            image_token_id=IMAGE,
        ),
        lambda count: {
            "pixel_values": pixels(count * 16, 3 * 4 * 4),
            "image_grid_hw": torch.tensor([[4, 4]] * count),
        },
        masks=False,
    ),
    "granite-4 (in llava_next)": Family(
        "LlavaNextForConditionalGeneration",
        lambda: hf.LlavaNextConfig(
            vision_config=CLIP,
            text_config=text(
                "granitemoehybrid",
                layer_types=["linear_attention", "full_attention"] * 2,
                mamba_n_heads=4,
                mamba_d_state=8,
                mamba_chunk_size=4,
                shared_intermediate_size=16,
                num_local_experts=4,
                num_experts_per_tok=2,
            ),
            image_token_index=IMAGE,
            vision_feature_layer=-1,
            image_grid_pinpoints=[[16, 8]],
        ),
        tiled_pictures,
        masks=False,
    ),
    "dots3_note": Family(
        "Dots3NoteForConditionalGeneration",
        lambda: hf.Dots3NoteConfig(
            text_config={
                **TEXT,
                **LATENT,
                **INDEXER,
                "q_lora_rank": 16,
                "head_dim": 12,
                "shared_experts_intermediate_size": 16,
                "layer_types": ["indexed_attention", "sliding_attention"] * 2,
                "sliding_window": 8,
                "swa_num_attention_heads": 2,
                "swa_num_key_value_heads": 2,
                "swa_q_lora_rank": 16,
                "swa_kv_lora_rank": 8,
                "swa_head_dim": 12,
                "swa_qk_nope_head_dim": 8,
                "swa_v_head_dim": 8,
            },
            vision_config={
                **VISION,
                "adapter_in_dim": 16,
                "adapter_out_dim": HIDDEN,
                "mlp_layer_types": ["dense", "dense"],
            },
            audio_config={
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "downsample_hidden_size": 4,
                "feature_size": 8,
                "adapter_input_size": 16,
                "adapter_out_dim": HIDDEN,
            },
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            audio_token_id=95,
        ),
        lambda count: {
            "pixel_values": pixels(count * 16, 3 * 4 * 4),
            "image_grid_thw": torch.tensor([[1, 4, 4]] * count),
        },
        masks=False,
    ),
    "mistral_large4": Family(
        "MistralLarge4ForConditionalGeneration",
        llava_like(
            getattr(hf, "MistralLarge4Config", None),
            "mistral_large4_text",
            {**PIXTRAL, "image_size": 16},
            text_options={**LATENT, **INDEXER},
            spatial_merge_size=2,
        ),
        lambda count: {
            "pixel_values": pixels(count, 3, 16, 16),
            "image_sizes": torch.tensor([[16, 16]] * count),
        },
        masks=False,
    ),
}

FAILING = {"llama4": ("5.0.", "5.24."), "gemma3n": ("5.0.",)}
"""Families whose own forward pass fails at a picture, or shares keys only where there is a KV cache (gemma3n), and the
versions of transformers that they do so in."""

LEFT_OUT = {
    name: "isn't there" if not hasattr(hf, family.model) else "its own forward pass is wrong"
    for name, family in _FAMILIES.items()
    if not hasattr(hf, family.model) or hf.__version__.startswith(FAILING.get(name, ()))
}
if not hasattr(hf.masking_utils, "create_recurrent_attention_mask"):
    LEFT_OUT |= {name: "its recurrent layers are older" for name, family in _FAMILIES.items() if not family.masks}
"""Families that aren't tried with this version of transformers, and why."""

FAMILIES = {name: family for name, family in _FAMILIES.items() if name not in LEFT_OUT}


BRANCHES = tuple(
    name
    for name in (
        "llava",
        "paligemma",
        "gemma3 (window shorter than the prompt)",
        "gemma3n",
        "gemma4",
        "molmo2",
        "qwen2_vl",
        "qwen3_vl",
        "llama4",
        "qwen3_5",
        "lfm2_vl",
        "nemotron_h_omni",
        "mistral_large4",
    )
    if name in FAMILIES
)
"""One family for each thing that `vtw_demo.withdrawal.architectures` and `segments` tell apart: none of them, attention
in both directions, sliding windows, shared keys with several streams and with several inputs, placeholders by another
name, positions in three dimensions, features added between layers, attention scaled by position, recurrent layers,
a convolution as the last layer, layers that do one thing each, indexers."""
