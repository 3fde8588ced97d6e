"""The configurations of the models in `vtw_demo.models.registry`, by hub id, as their `config.json` has them.

Only what decides on the shapes of weights is here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
VICUNA_7B = {"model_type": "llama", "vocab_size": 32064, **_decoder(4096, 11008, 32, 32, 32)}
VICUNA_13B = {"model_type": "llama", "vocab_size": 32064, **_decoder(5120, 13824, 40, 40, 40)}
QWEN2_500M = _decoder(896, 4864, 24, 14, 2, model_type="qwen2")
QWEN2_1500M = _decoder(1536, 8960, 28, 12, 2, model_type="qwen2")
QWEN2_7B = _decoder(3584, 18944, 28, 28, 4, model_type="qwen2")


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


def _qwen3(decoder: dict[str, Any]) -> hf.PreTrainedConfig:
    vision = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16}
    return hf.Qwen3VLConfig(
        vision_config=vision | {"out_hidden_size": decoder["hidden_size"], "deepstack_visual_indexes": [5, 11, 17]},
        text_config={**decoder, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True},
        tie_word_embeddings=True,
    )


def _internvl(decoder: dict[str, Any]) -> hf.PreTrainedConfig:
    vision = _tower("internvl_vision", 1024, 4096, 24, 16, 448, 14) | {"image_size": [448, 448], "patch_size": [14, 14]}
    return hf.InternVLConfig(
        vision_config=vision,
        text_config=decoder | {"vocab_size": 151674, "tie_word_embeddings": False},
        tie_word_embeddings=False,
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
    "Qwen/Qwen3-VL-2B-Instruct": lambda: _qwen3(_decoder(2048, 6144, 28, 16, 8)),
    "Qwen/Qwen3-VL-4B-Instruct": lambda: _qwen3(_decoder(2560, 9728, 36, 32, 8)),
    "OpenGVLab/InternVL3-1B-hf": lambda: _internvl(QWEN2_500M),
    "OpenGVLab/InternVL3-2B-hf": lambda: _internvl(QWEN2_1500M),
    "OpenGVLab/InternVL3-8B-hf": lambda: _internvl(QWEN2_7B),
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": lambda: _smolvlm(SMOL_512, _decoder(576, 1536, 30, 9, 3), 4),
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": lambda: _smolvlm(SMOL_512, _decoder(960, 2560, 32, 15, 5), 4),
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": lambda: _smolvlm(SMOL_384, _decoder(2048, 8192, 24, 32, 32), 3),
    "google/gemma-3-4b-it": lambda: hf.Gemma3Config(
        vision_config=_tower("siglip_vision_model", 1152, 4304, 27, 16, 896, 14) | {"vision_use_head": False},
        text_config=_decoder(2560, 10240, 34, 8, 4, head_dim=256, vocab_size=262208),
    ),
    "LanguageBind/Video-LLaVA-7B-hf": lambda: hf.VideoLlavaConfig(vision_config=CLIP_224, text_config=VICUNA_7B),
}
