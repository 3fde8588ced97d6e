"""The configurations of the models in `vtw_demo.models.registry`, by hub id, as their `config.json` has them.

Only what decides on the shapes of weights is here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf


def _decoder(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, **options: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        **options,
    }


def _tower(model_type: str, hidden: int, intermediate: int, layers: int, heads: int, side: int, patch: int) -> dict:
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": side,
        "patch_size": patch,
    }


CLIP_336 = _tower("clip_vision_model", 1024, 4096, 24, 16, 336, 14) | {"projection_dim": 768}
CLIP_224 = CLIP_336 | {"image_size": 224}
SIGLIP_384 = _tower("siglip_vision_model", 1152, 4304, 26, 16, 384, 14) | {"vision_use_head": False}
SIGLIP_448 = SIGLIP_384 | {"num_hidden_layers": 27, "image_size": 448, "projection_dim": 2304}
VICUNA_7B = {"model_type": "llama", "vocab_size": 32064, **_decoder(4096, 11008, 32, 32, 32)}
VICUNA_13B = {"model_type": "llama", "vocab_size": 32064, **_decoder(5120, 13824, 40, 40, 40)}
QWEN2_500M = _decoder(896, 4864, 24, 14, 2, model_type="qwen2")
QWEN2_1500M = _decoder(1536, 8960, 28, 12, 2, model_type="qwen2")
QWEN2_7B = _decoder(3584, 18944, 28, 28, 4, model_type="qwen2")
QWEN3_2B = _decoder(2048, 6144, 28, 16, 8)
QWEN3_4B = _decoder(2560, 9728, 36, 32, 8)
QWEN3_8B = _decoder(4096, 12288, 36, 32, 8)


def _onevision(decoder: dict[str, Any], vocabulary: int, tied: bool) -> hf.PreTrainedConfig:
    return hf.LlavaOnevisionConfig(
        vision_config=SIGLIP_384,
        text_config=decoder | {"vocab_size": vocabulary, "tie_word_embeddings": tied},
        tie_word_embeddings=tied,
    )


def _qwen2_5(decoder: dict[str, Any], vocabulary: int, tied: bool) -> hf.PreTrainedConfig:
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
    return hf.Qwen2_5_VLConfig(
        vision_config=vision | {"out_hidden_size": decoder["hidden_size"]},
        text_config={**decoder, "model_type": "qwen2_5_vl_text", "vocab_size": vocabulary, "tie_word_embeddings": tied},
        tie_word_embeddings=tied,
    )


QWEN_SMALL = {"depth": 12, "hidden_size": 768, "intermediate_size": 3072, "num_heads": 12}
QWEN_MIDDLE = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16}
QWEN_LARGE = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16}


def _qwen3(vision: dict[str, Any], deepstack: list[int], decoder: dict[str, Any], tied: bool) -> hf.PreTrainedConfig:
    return hf.Qwen3VLConfig(
        vision_config=vision | {"out_hidden_size": decoder["hidden_size"], "deepstack_visual_indexes": deepstack},
        text_config={**decoder, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": tied},
        tie_word_embeddings=tied,
    )


def _qwen3_5(vision: dict[str, Any], decoder: dict[str, Any], value_heads: int, tied: bool) -> hf.PreTrainedConfig:
    """Three layers of linear attention to one of full attention. What the hub's files hold besides predicts several
    tokens at once, and is no part of the model in transformers."""
    return hf.Qwen3_5Config(
        vision_config=vision | {"out_hidden_size": decoder["hidden_size"]},
        text_config={**decoder, **LINEAR, "linear_num_value_heads": value_heads, "tie_word_embeddings": tied},
        tie_word_embeddings=tied,
    )


LINEAR = {"head_dim": 256, "vocab_size": 248320, "linear_num_key_heads": 16}


def _internvl(decoder: dict[str, Any], **options: Any) -> hf.PreTrainedConfig:
    vision = _tower("internvl_vision", 1024, 4096, 24, 16, 448, 14) | {"image_size": [448, 448], "patch_size": [14, 14]}
    return hf.InternVLConfig(
        vision_config=vision | options,
        text_config={"vocab_size": 151674, **decoder, "tie_word_embeddings": False},
        tie_word_embeddings=False,
    )


def _internvl3_5(decoder: dict[str, Any]) -> hf.PreTrainedConfig:
    text = {"model_type": "qwen3", "head_dim": 128, "vocab_size": 151936}
    return _internvl(decoder | text, attention_bias=True)


def _gemma4(decoder: dict[str, Any], period: int, shared: int, **options: Any) -> hf.PreTrainedConfig:
    """The hub's files also hold keys and values of the layers that share those of others."""
    kinds = ["sliding_attention"] * (period - 1) + ["full_attention"]
    return hf.Gemma4Config(
        text_config={
            **decoder,
            "head_dim": 256,
            "global_head_dim": 512,
            "vocab_size": 262144,
            "hidden_size_per_layer_input": 256,
            "vocab_size_per_layer_input": 262144,
            "num_kv_shared_layers": shared,
            "layer_types": kinds * (decoder["num_hidden_layers"] // period),
            **options,
        },
        vision_config=_decoder(768, 3072, 16, 12, 12, head_dim=64, use_clipped_linears=True),
        audio_config={
            "hidden_size": 1024,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "output_proj_dims": 1536,
            "use_clipped_linears": True,
        },
    )


def _lfm2(vision: dict[str, Any], decoder: dict[str, Any]) -> hf.PreTrainedConfig:
    return hf.Lfm2VlConfig(
        vision_config=vision | {"num_patches": 256, "vision_use_head": False},
        text_config={
            "model_type": "lfm2",
            **decoder,
            "vocab_size": 65536,
            "layer_types": ["full_attention" if layer in (2, 5, 8, 10, 12, 14) else "conv" for layer in range(16)],
        },
        projector_hidden_size=2048,
        projector_use_layernorm=False,
    )


def _smolvlm(vision: dict[str, Any], decoder: dict[str, Any], scale: int) -> hf.PreTrainedConfig:
    return hf.SmolVLMConfig(
        vision_config=vision,
        text_config={**decoder, "model_type": "llama", "vocab_size": 49280, "tie_word_embeddings": False},
        scale_factor=scale,
        tie_word_embeddings=False,
    )


SMOL_512 = _tower("smolvlm_vision", 768, 3072, 12, 12, 512, 16)
SMOL_384 = _tower("smolvlm_vision", 1152, 4304, 27, 16, 384, 14)

CONFIGS: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "llava-hf/llava-1.5-7b-hf": lambda: hf.LlavaConfig(vision_config=CLIP_336, text_config=VICUNA_7B),
    "llava-hf/llava-1.5-13b-hf": lambda: hf.LlavaConfig(vision_config=CLIP_336, text_config=VICUNA_13B),
    "llava-hf/llava-v1.6-vicuna-7b-hf": lambda: hf.LlavaNextConfig(vision_config=CLIP_336, text_config=VICUNA_7B),
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": lambda: _onevision(QWEN2_500M, 152000, tied=True),
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": lambda: _onevision(QWEN2_7B, 152128, tied=False),
    "Qwen/Qwen2.5-VL-3B-Instruct": lambda: _qwen2_5(_decoder(2048, 11008, 36, 16, 2), 151936, tied=True),
    "Qwen/Qwen2.5-VL-7B-Instruct": lambda: _qwen2_5(QWEN2_7B, 152064, tied=False),
    "Qwen/Qwen3-VL-2B-Instruct": lambda: _qwen3(QWEN_MIDDLE, [5, 11, 17], QWEN3_2B, tied=True),
    "Qwen/Qwen3-VL-4B-Instruct": lambda: _qwen3(QWEN_MIDDLE, [5, 11, 17], QWEN3_4B, tied=True),
    "Qwen/Qwen3-VL-8B-Instruct": lambda: _qwen3(QWEN_LARGE, [8, 16, 24], QWEN3_8B, tied=False),
    "Qwen/Qwen3.5-0.8B": lambda: _qwen3_5(QWEN_SMALL, _decoder(1024, 3584, 24, 8, 2), 16, tied=True),
    "Qwen/Qwen3.5-2B": lambda: _qwen3_5(QWEN_MIDDLE, _decoder(2048, 6144, 24, 8, 2), 16, tied=True),
    "Qwen/Qwen3.5-4B": lambda: _qwen3_5(QWEN_MIDDLE, _decoder(2560, 9216, 32, 16, 4), 32, tied=True),
    "Qwen/Qwen3.5-9B": lambda: _qwen3_5(QWEN_LARGE, _decoder(4096, 12288, 32, 16, 4), 32, tied=False),
    "OpenGVLab/InternVL3-1B-hf": lambda: _internvl(QWEN2_500M),
    "OpenGVLab/InternVL3-2B-hf": lambda: _internvl(QWEN2_1500M),
    "OpenGVLab/InternVL3-8B-hf": lambda: _internvl(QWEN2_7B),
    "OpenGVLab/InternVL3_5-1B-HF": lambda: _internvl3_5(_decoder(1024, 3072, 28, 16, 8)),
    "OpenGVLab/InternVL3_5-2B-HF": lambda: _internvl3_5(QWEN3_2B),
    "OpenGVLab/InternVL3_5-4B-HF": lambda: _internvl3_5(QWEN3_4B),
    "OpenGVLab/InternVL3_5-8B-HF": lambda: _internvl3_5(QWEN3_8B),
    "openbmb/MiniCPM-V-4.6": lambda: hf.MiniCPMV4_6Config(
        vision_config=_tower("minicpmv4_6_vision", 1152, 4304, 27, 16, 980, 14),
        text_config=_decoder(1024, 3584, 24, 8, 2, model_type="qwen3_5_text", tie_word_embeddings=True)
        | LINEAR
        | {"vocab_size": 248094, "linear_num_value_heads": 16},
        insert_layer_id=6,
        image_token_id=248056,
        video_token_id=248057,
        tie_word_embeddings=True,
    ),
    "LiquidAI/LFM2.5-VL-450M": lambda: _lfm2(
        _tower("siglip2_vision_model", 768, 3072, 12, 12, 256, 16), _decoder(1024, 6656, 16, 16, 8)
    ),
    "LiquidAI/LFM2.5-VL-1.6B": lambda: _lfm2(
        _tower("siglip2_vision_model", 1152, 4304, 27, 16, 256, 16), _decoder(2048, 12288, 16, 32, 8)
    ),
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": lambda: _smolvlm(SMOL_512, _decoder(576, 1536, 30, 9, 3), 4),
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": lambda: _smolvlm(SMOL_512, _decoder(960, 2560, 32, 15, 5), 4),
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": lambda: _smolvlm(SMOL_384, _decoder(2048, 8192, 24, 32, 32), 3),
    "google/gemma-3-4b-it": lambda: hf.Gemma3Config(
        vision_config=_tower("siglip_vision_model", 1152, 4304, 27, 16, 896, 14) | {"vision_use_head": False},
        text_config=_decoder(2560, 10240, 34, 8, 4, head_dim=256, vocab_size=262208),
    ),
    "google/gemma-4-E2B-it": lambda: _gemma4(_decoder(1536, 6144, 35, 8, 1), 5, 20, use_double_wide_mlp=True),
    "google/gemma-4-E4B-it": lambda: _gemma4(_decoder(2560, 10240, 42, 8, 2), 6, 18, use_double_wide_mlp=False),
    "google/paligemma2-3b-mix-448": lambda: hf.PaliGemmaConfig(
        vision_config=SIGLIP_448,
        text_config=_decoder(2304, 9216, 26, 8, 4, model_type="gemma2", head_dim=256, vocab_size=257216),
        projection_dim=2304,
    ),
    "ibm-granite/granite-vision-3.3-2b": lambda: hf.LlavaNextConfig(
        vision_config=_tower("siglip_vision_model", 1152, 4304, 27, 16, 384, 14),
        text_config=_decoder(2048, 8192, 40, 32, 8, model_type="granite", vocab_size=49156, tie_word_embeddings=True),
        vision_feature_layer=[-24, -20, -12, -1],
        tie_word_embeddings=True,
    ),
    "zai-org/GLM-4.6V-Flash": lambda: hf.Glm4vConfig(
        vision_config={
            "depth": 24,
            "hidden_size": 1536,
            "num_heads": 12,
            "out_hidden_size": 4096,
            "intermediate_size": 13696,
        },
        text_config=_decoder(4096, 13696, 40, 32, 2, vocab_size=151552, tie_word_embeddings=False),
        tie_word_embeddings=False,
    ),
    "LanguageBind/Video-LLaVA-7B-hf": lambda: hf.VideoLlavaConfig(vision_config=CLIP_224, text_config=VICUNA_7B),
}

IN_FLOAT16 = ("llava-hf/", "LanguageBind/")
IN_FLOAT32 = ("HuggingFaceTB/SmolVLM2",)


def stored_dtype(name: str) -> torch.dtype:
    """In which the hub's checkpoint is stored, from its files' sizes: bfloat16, but for these."""
    if name.startswith(IN_FLOAT32):
        return torch.float32
    return torch.float16 if name.startswith(IN_FLOAT16) else torch.bfloat16
