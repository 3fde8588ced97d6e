"""Further families of `tests.every_name`, which differ from those of `tests.families` in nothing that withdrawal sees,
or need no more than a look at them once a night."""

import torch
import transformers as hf

from tests.families import (
    END,
    EXPERTS,
    GEMMA_VISION,
    HIDDEN,
    IMAGE,
    MROPE,
    ONE_FRAME,
    PIXTRAL,
    QWEN_IMAGES,
    SIGLIP,
    START,
    TEXT,
    VIDEO,
    VISION,
    Family,
    pictures,
    pixels,
    qwen_like,
    text,
    tiled_pictures,
)

WHOLE = {"rope_parameters": {**MROPE["rope_parameters"], "partial_rotary_factor": 1.0}}
"""Rotary embeddings of all of a head, where half of one is usual."""
GLM_VISION = {"out_hidden_size": HIDDEN, "image_size": 16}
EXPERTS_OF_GLM = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
}

SAM = {
    "hidden_size": 16,
    "output_channels": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 4,
    "window_size": 4,
    "global_attn_indexes": [0],
}
DEEPSTACK_VISION = {
    "hidden_size": 16,
    "patch_size": 4,
    "num_heads": 2,
    "depth": 2,
    "intermediate_size": 16,
    "out_hidden_size": HIDDEN,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1],
}
FOUR_AXES = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 1, 1]}
"""Positions have a part for text alone."""


def grid_patches(temporal: int = 1):
    """Four by four flattened patches of 4 pixels."""

    def make(count: int) -> dict[str, torch.Tensor]:
        return {
            "pixel_values": pixels(count * 16, 3 * temporal * 4 * 4),
            "image_grid_thw": torch.tensor([[1, 4, 4]] * count),
        }

    return make


def large_pictures(count: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": pixels(count, 3, 16, 16)}


def phi_pictures(count: int) -> dict[str, torch.Tensor]:
    """An overview and one tile, each of four by four patches."""
    return {
        "image_pixel_values": pixels(count, 2, 3, 16, 16),
        "image_sizes": torch.tensor([[16, 16]] * count),
        "image_attention_mask": torch.ones(count, 2, 4, 4),
    }


MORE: dict[str, Family] = {
    "chameleon": Family(
        "ChameleonForConditionalGeneration",
        lambda: hf.ChameleonConfig(
            **TEXT,
            vq_config={
                "embed_dim": 8,
                "num_embeddings": 8,
                "latent_channels": 8,
                "resolution": 4,
                "base_channels": 32,
                "channel_multiplier": [1, 1],
                "num_res_blocks": 1,
            },
            vocabulary_map={"<image>": IMAGE} | {f"IMGIMG{letter}Z": 60 + at for at, letter in enumerate("ABCDEFGH")},
        ),
        lambda count: {"pixel_values": pixels(count, 3, 4, 4)},
    ),
    "hyperclovax_vision_v2": Family(
        "HyperCLOVAXVisionV2ForConditionalGeneration",
        lambda: hf.HyperCLOVAXVisionV2Config(
            vision_config={
                "model_type": "qwen2_5_vl_vision",
                "hidden_size": 16,
                "patch_size": 4,
                "num_heads": 2,
                "depth": 2,
                "intermediate_size": 16,
                "out_hidden_size": HIDDEN,
                "fullatt_block_indexes": [1],
                "window_size": 8,
            },
            text_config=text("hyperclovax"),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        ),
        QWEN_IMAGES,
    ),
    "fuyu": Family(
        "FuyuForCausalLM",
        lambda: hf.FuyuConfig(text_config=text("persimmon"), image_token_id=IMAGE, patch_size=4, image_size=16),
        lambda count: {"pixel_values": pixels(count, 4, 3 * 4 * 4)},
    ),
    "muse_glimmer": Family(
        "MuseGlimmerForConditionalGeneration",
        lambda: hf.MuseGlimmerConfig(
            vision_config={
                "patch_size": 4,
                "pos_emb_height": 4,
                "pos_emb_width": 4,
                "num_attention_heads": 2,
                "num_hidden_layers": 2,
                "hidden_size": 16,
                "intermediate_size": 16,
                "max_position_embeddings": 16,
            },
            text_config={
                **TEXT,
                "head_dim": 8,
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            out_hidden_size=16 * 4,
            projector_hidden_size=16,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        ),
        lambda count: {
            "pixel_values": pixels(count * 16, 2 * 3 * 4 * 4),
            "image_grid_thw": torch.tensor([[1, 4, 4]] * count),
        },
    ),
    "kimi_k25": Family(
        "Kimi_K25ForConditionalGeneration",
        lambda: hf.Kimi_K25Config(
            vision_config={
                "patch_size": 4,
                "pos_emb_height": 4,
                "pos_emb_width": 4,
                "num_attention_heads": 2,
                "num_hidden_layers": 2,
                "hidden_size": 16,
                "intermediate_size": 16,
            },
            text_config=text(
                "deepseek_v3",
                num_key_value_heads=4,
                kv_lora_rank=16,
                q_lora_rank=16,
                qk_rope_head_dim=4,
                qk_nope_head_dim=8,
                v_head_dim=8,
                moe_intermediate_size=16,
                n_routed_experts=4,
                num_experts_per_tok=2,
                n_group=1,
                topk_group=1,
                first_k_dense_replace=1,
            ),
            projection_hidden_size=16,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        ),
        lambda count: {
            "pixel_values": pixels(count * 16, 3, 4, 4),
            "image_grid_thw": torch.tensor([[1, 4, 4]] * count),
        },
    ),
    "gemma4_unified": Family(
        "Gemma4UnifiedForConditionalGeneration",
        lambda: hf.Gemma4UnifiedConfig(
            text_config={
                **TEXT,
                "head_dim": 8,
                "global_head_dim": 8,
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            vision_config={
                "patch_size": 4,
                "pooling_kernel_size": 2,
                "mm_embed_dim": HIDDEN,
                "mm_posemb_size": 16,
                "output_proj_dims": HIDDEN,
            },
            audio_config=None,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            boi_token_id=START,
            eoi_token_id=END,
            audio_token_id=95,
        ),
        lambda count: {
            "pixel_values": pixels(count, 4, 3 * 8 * 8).sigmoid(),
            "image_position_ids": torch.cartesian_prod(torch.arange(2), torch.arange(2))
            .expand(count, -1, -1)
            .contiguous(),
        },
        token_types="mm_token_type_ids",
        around=True,
    ),
    "granite_docling": Family(
        "GraniteDoclingForConditionalGeneration",
        lambda: hf.GraniteDoclingConfig(
            vision_config={
                **VISION,
                "image_size": 16,
                "out_hidden_size": HIDDEN,
                "scale_factor": 2,
                "deepstack_visual_indexes": [0],
            },
            text_config=TEXT,
            image_token_id=IMAGE,
            pad_token_id=0,
        ),
        lambda count: {
            "pixel_values": pixels(count, 1, 3, 16, 16),
            "pixel_attention_mask": torch.ones(count, 1, dtype=torch.bool),
        },
    ),
    "ernie4_5_vl_moe": Family(
        "Ernie4_5_VLMoeForConditionalGeneration",
        lambda: hf.Ernie4_5_VLMoeConfig(
            text_config={
                **TEXT,
                **MROPE,
                "moe_num_experts": 4,
                "moe_k": 2,
                "moe_num_shared_experts": 1,
                "moe_intermediate_size": [40, 12],
            },
            vision_config={"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "patch_size": 4},
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        ),
        grid_patches(),
        around=True,
        token_types="mm_token_type_ids",
    ),
    "phi4_multimodal": Family(
        "Phi4MultimodalForCausalLM",
        lambda: hf.Phi4MultimodalConfig(
            **TEXT | {"eos_token_id": [0]},
            vision_config={**VISION, "image_size": 16, "crop_size": 16, "image_token_id": IMAGE},
            audio_config={
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_blocks": 1,
                "num_attention_heads": 2,
                "ext_pw_out_channel": 16,
                "depthwise_separable_out_channel": 16,
                "nemo_conv_channels": 16,
                "audio_token_id": 95,
            },
        ),
        phi_pictures,
        tokens=13,
        masks=False,  # its vision encoder is part of its decoder, and attends by the same setting
    ),
    "glm46v": Family(
        "Glm46VForConditionalGeneration",
        lambda: hf.Glm46VConfig(
            vision_config={
                "model_type": "glm4v_vision",
                "hidden_size": 16,
                "patch_size": 4,
                "num_heads": 2,
                "depth": 2,
                "intermediate_size": 16,
                "out_hidden_size": HIDDEN,
                "image_size": 16,
            },
            text_config={"model_type": "glm4v_text", **TEXT, **MROPE},
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            image_start_token_id=START,
            image_end_token_id=END,
        ),
        QWEN_IMAGES,
        around=True,
        token_types="mm_token_type_ids",
    ),
    "glm4v_moe": Family(
        "Glm4vMoeForConditionalGeneration",
        qwen_like(
            getattr(hf, "Glm4vMoeConfig", None),
            {"out_hidden_size": HIDDEN, "image_size": 16},
            **WHOLE,
            **EXPERTS_OF_GLM,
        ),
        QWEN_IMAGES,
        around=True,
        token_types="mm_token_type_ids",
    ),
    "glm_ocr": Family(
        "GlmOcrForConditionalGeneration",
        qwen_like(getattr(hf, "GlmOcrConfig", None), GLM_VISION, **WHOLE, head_dim=8),
        QWEN_IMAGES,
        around=True,
        token_types="mm_token_type_ids",
    ),
    "got_ocr2": Family(
        "GotOcr2ForConditionalGeneration",
        lambda: hf.GotOcr2Config(
            vision_config={
                "hidden_size": 16,
                "output_channels": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 32,
                "patch_size": 4,
                "window_size": 4,
                "global_attn_indexes": [0],
                "mlp_dim": 16,
            },
            text_config=text("qwen2"),
            image_token_index=IMAGE,
        ),
        lambda count: {"pixel_values": pixels(count, 3, 32, 32)},
    ),
    "lighton_ocr": Family(
        "LightOnOcrForConditionalGeneration",
        lambda: hf.LightOnOcrConfig(
            vision_config={**PIXTRAL, "image_size": 16},
            text_config=text("qwen3", head_dim=8),
            image_token_id=IMAGE,
        ),
        lambda count: {**large_pictures(count), "image_sizes": torch.tensor([[16, 16]] * count)},
    ),
    "exaone4_5": Family(
        "Exaone4_5_ForConditionalGeneration",
        lambda: hf.Exaone4_5_Config(
            vision_config={
                "hidden_size": 16,
                "patch_size": 4,
                "num_heads": 2,
                "num_key_value_heads": 1,
                "depth": 2,
                "intermediate_size": 16,
                "out_hidden_size": HIDDEN,
                "fullatt_block_indexes": [1],
                "window_size": 8,
            },
            text_config=text("exaone4", layer_types=["sliding_attention", "full_attention"] * 2, sliding_window=8),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        ),
        QWEN_IMAGES,
        around=True,
    ),
    "video_llama_3": Family(
        "VideoLlama3ForConditionalGeneration",
        lambda: hf.VideoLlama3Config(
            vision_config={**VISION},
            text_config=text("qwen2"),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        ),
        lambda count: {**grid_patches()(count), "image_merge_sizes": torch.tensor([2] * count)},
    ),
    "qianfan_ocr": Family(
        "QianfanOCRForConditionalGeneration",
        lambda: hf.QianfanOCRConfig(
            vision_config={**VISION, "image_size": (16, 16), "patch_size": (4, 4)},
            text_config=text("qwen3", head_dim=8),
            image_token_id=IMAGE,
        ),
        large_pictures,
    ),
    "paddleocr_vl": Family(
        "PaddleOCRVLForConditionalGeneration",
        lambda: hf.PaddleOCRVLConfig(
            vision_config={**VISION, "image_size": 16},
            text_config={**TEXT, **MROPE, "head_dim": 8, "eos_token_id": None},
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=START,
            vision_end_token_id=END,
        ),
        lambda count: {
            "pixel_values": pixels(count * 16, 3, 4, 4),
            "image_grid_thw": torch.tensor([[1, 4, 4]] * count),
        },
        around=True,
        token_types="mm_token_type_ids",
    ),
    "cosmos3_omni": Family(
        "Cosmos3OmniForConditionalGeneration",
        lambda: hf.Cosmos3OmniConfig(
            vision_config={"model_type": "qwen3_vl_vision", **DEEPSTACK_VISION},
            text_config={"model_type": "qwen3_vl_text", **TEXT, **MROPE, "head_dim": 8},
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=START,
            vision_end_token_id=END,
        ),
        QWEN_IMAGES,
        ONE_FRAME,
        around=True,
        token_types="mm_token_type_ids",
    ),
    "cosmos3_edge": Family(
        "Cosmos3EdgeForConditionalGeneration",
        lambda: hf.Cosmos3EdgeConfig(
            vision_config={**VISION, "num_patches": 16},
            text_config={**TEXT, **MROPE, "head_dim": 8},
            projector_hidden_size=16,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=START,
            vision_end_token_id=END,
        ),
        grid_patches(),
        around=True,
        token_types="mm_token_type_ids",
    ),
    "qwen2_5_omni_thinker": Family(
        "Qwen2_5OmniThinkerForConditionalGeneration",
        lambda: hf.Qwen2_5OmniThinkerConfig(
            vision_config={
                "hidden_size": 16,
                "patch_size": 4,
                "num_heads": 2,
                "depth": 2,
                "intermediate_size": 16,
                "out_hidden_size": HIDDEN,
                "fullatt_block_indexes": [1],
                "window_size": 8,
            },
            text_config={**TEXT, **MROPE},
            audio_config={
                "d_model": 16,
                "encoder_layers": 1,
                "encoder_attention_heads": 2,
                "encoder_ffn_dim": 16,
                "num_mel_bins": 8,
                "output_dim": HIDDEN,
            },
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            audio_token_index=95,
            vision_start_token_id=START,
            vision_end_token_id=END,
        ),
        QWEN_IMAGES,
        around=True,
    ),
    "qwen3_omni_moe_thinker": Family(
        "Qwen3OmniMoeThinkerForConditionalGeneration",
        lambda: hf.Qwen3OmniMoeThinkerConfig(
            vision_config=DEEPSTACK_VISION,
            text_config={**TEXT, **MROPE, **EXPERTS, "head_dim": 8},
            audio_config={
                "d_model": 16,
                "encoder_layers": 1,
                "encoder_attention_heads": 2,
                "encoder_ffn_dim": 16,
                "num_mel_bins": 16,
                "output_dim": HIDDEN,
            },
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            audio_token_id=95,
            vision_start_token_id=START,
            vision_end_token_id=END,
        ),
        QWEN_IMAGES,
        around=True,
    ),
    "cohere_compass": Family(
        "CohereCompassForConditionalGeneration",
        lambda: hf.CohereCompassConfig(
            vision_config=DEEPSTACK_VISION,
            text_config={
                **TEXT,
                "logit_scale": 1.0,
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
                "rope_parameters": {"sliding_attention": MROPE["rope_parameters"], "full_attention": None},
            },
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=START,
            vision_end_token_id=END,
        ),
        QWEN_IMAGES,
        ONE_FRAME,
        around=True,
        token_types="mm_token_type_ids",
    ),
    "deepseek_ocr2": Family(
        "DeepseekOcr2ForConditionalGeneration",
        lambda: hf.DeepseekOcr2Config(
            vision_config={
                "sam_config": {**SAM, "downsample_channels": [8, 16]},
                "encoder_config": {
                    "hidden_size": 16,
                    "intermediate_size": 16,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 2,
                },
            },
            text_config={**TEXT, **EXPERTS_OF_GLM, "mlp_layer_types": ["dense", "sparse"] * 2},
            image_token_id=IMAGE,
        ),
        lambda count: {"pixel_values": pixels(count, 3, 32, 32)},
    ),
    "deepseek_vl_hybrid": Family(
        "DeepseekVLHybridForConditionalGeneration",
        lambda: hf.DeepseekVLHybridConfig(
            vision_config=SIGLIP,
            high_res_vision_config={"model_type": "sam_vision_model", **SAM, "mlp_dim": 16},
            text_config=text("llama"),
            image_token_id=IMAGE,
        ),
        lambda count: {**pictures(count), "high_res_pixel_values": pixels(count, 3, 32, 32)},
    ),
    "emu3": Family(
        "Emu3ForConditionalGeneration",
        lambda: hf.Emu3Config(
            text_config={**TEXT, "bos_token_id": 1, "eos_token_id": 2},
            vq_config={
                "codebook_size": 8,
                "base_channels": 32,
                "channel_multiplier": [1, 1],
                "num_res_blocks": 1,
                "attn_resolutions": [],
                "hidden_size": 32,
                "temporal_downsample_factor": 2,
            },
            vocabulary_map={"<image>": IMAGE, "<|extra_200|>": 70}
            | {f"<|visual token {at:06d}|>": 60 + at for at in range(8)},
        ),
        lambda count: {"pixel_values": pixels(count, 3, 4, 4), "image_sizes": torch.tensor([[4, 4]] * count)},
    ),
    "granite4_vision": Family(
        "Granite4VisionForConditionalGeneration",
        lambda: hf.Granite4VisionConfig(
            vision_config={**SIGLIP, "hidden_size": 64},
            text_config=text("granite4_vision_text"),
            qformer_config={
                "model_type": "blip_2_qformer",
                "num_hidden_layers": 1,
                "intermediate_size": 16,
                "use_qformer_text_input": False,
                "cross_attention_frequency": 1,
            },
            image_token_index=IMAGE,
            downsample_rate="1/2",
            deepstack_layer_map=[[1, 0], [-1, 1]],
            spatial_target_layers=[0, 1, 2, 3],
            vision_feature_select_strategy="full",
            image_grid_pinpoints=[[16, 8]],
        ),
        tiled_pictures,
        tokens=5,
    ),
    "hunyuan_vl": Family(
        "HunYuanVLForConditionalGeneration",
        lambda: hf.HunYuanVLConfig(
            vision_config={
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_attention_heads": 2,
                "num_hidden_layers": 2,
                "out_hidden_size": HIDDEN,
                "patch_size": 4,
                "max_image_size": 16,
            },
            text_config={**TEXT, "head_dim": 8, "rope_parameters": FOUR_AXES},
            image_token_id=IMAGE,
            tie_word_embeddings=False,
        ),
        grid_patches(),
        around=True,
        token_types="mm_token_type_ids",
        tokens=8,
    ),
    "muse_spark": Family(
        "MuseSparkForConditionalGeneration",
        lambda: hf.MuseSparkConfig(
            vision_config={
                "patch_size": 4,
                "pos_emb_height": 4,
                "pos_emb_width": 4,
                "num_attention_heads": 2,
                "num_hidden_layers": 2,
                "hidden_size": 16,
                "intermediate_size": 16,
                "max_position_embeddings": 16,
            },
            text_config={
                **TEXT,
                "head_dim": 8,
                "sliding_window": 8,
                "moe_hidden_size": 16,
                "moe_intermediate_size": 16,
                "num_local_experts": 4,
                "num_experts_per_tok": 2,
                "mlp_layer_types": ["dense", "sparse"] * 2,
            },
            audio_config={
                "patch_sizes": [2, 2],
                "hidden_sizes": [4, 8],
                "depths": [1, 1],
                "num_hidden_layers": 2,
                "out_hidden_size": HIDDEN,
            },
            out_hidden_size=16 * 4,
            projector_hidden_size=16,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            audio_token_id=95,
        ),
        grid_patches(temporal=2),
    ),
    "step3p7": Family(
        "Step3p7ForConditionalGeneration",
        lambda: hf.Step3p7Config(
            vision_config={
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 16,
                "patch_size": 4,
                "mlp_ratio": 1.0,
                "max_position_embeddings": 16,
            },
            text_config={
                **TEXT,
                "head_dim": 8,
                "n_routed_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 16,
                "share_expert_dim": 16,
                "sliding_window": 8,
                "num_sliding_attention_heads": 2,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
                "mlp_layer_types": ["dense", "sparse"] * 2,
            },
            image_token_id=IMAGE,
        ),
        large_pictures,
    ),
    "janus": Family(
        "JanusForConditionalGeneration",
        lambda: hf.JanusConfig(
            vision_config={**VISION, "projection_dim": HIDDEN},
            text_config=text("llama"),
            vq_config={
                "base_channels": 32,
                "num_embeddings": 8,
                "projection_dim": 16,
                "image_token_embed_dim": 16,
                "channel_multiplier": [1],
                "num_res_blocks": 1,
                "latent_channels": 8,
            },
            image_token_id=IMAGE,
        ),
    ),
}

QFORMER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
OPT = {
    "model_type": "opt",
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "ffn_dim": 16,
    "num_attention_heads": 2,
    "word_embed_proj_dim": 16,
}
BLIP_VISION = {key: value for key, value in VISION.items() if key != "projection_dim"}
REFUSED = {
    "mllama": (
        "MllamaForConditionalGeneration",
        lambda: hf.MllamaConfig(
            text_config={**TEXT, "cross_attention_layers": [1], "bos_token_id": 1, "eos_token_id": 2},
            vision_config={**VISION, "num_global_layers": 1, "vision_output_dim": 16, "attention_heads": 2},
        ),
        "a MllamaCrossAttentionDecoderLayer",
    ),
    "florence2": (
        "Florence2ForConditionalGeneration",
        lambda: hf.Florence2Config(
            text_config={"model_type": "bart", "d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
        ),
        "it is an encoder-decoder",
    ),
    "blip_2": (
        "Blip2ForConditionalGeneration",
        lambda: hf.Blip2Config(
            vision_config=BLIP_VISION, qformer_config=QFORMER, text_config=OPT, image_token_index=99
        ),
        "its generate hands embeddings",
    ),
    "diffusion_gemma": (
        "DiffusionGemmaForBlockDiffusion",
        lambda: hf.DiffusionGemmaConfig(
            text_config={**TEXT, "head_dim": 8, "global_head_dim": 8, "num_experts": 4, "top_k_experts": 2}
            | {"moe_intermediate_size": 16, "hidden_activation": "gelu_pytorch_tanh"},
            vision_config=GEMMA_VISION,
        ),
        "its visual tokens run through an encoder's layers, not through its decoder's",
    ),
    "qwen2_5_omni": (
        "Qwen2_5OmniForConditionalGeneration",
        lambda: hf.Qwen2_5OmniConfig(),
        "a model inside it answers in text. Hand over that one, `.thinker`",
    ),
    "qwen3_omni_moe": (
        "Qwen3OmniMoeForConditionalGeneration",
        # With speech, transformers can't build its usual configuration.
        lambda: hf.Qwen3OmniMoeConfig(enable_audio_output=False),
        "a model inside it answers in text. Hand over that one, `.thinker`",
    ),
    "glm5_next": ("Glm5NextForConditionalGeneration", lambda: hf.Glm5NextConfig(), "several streams to a token"),
    "minimax_m3_vl": (
        "MiniMaxM3SparseForConditionalGeneration",
        lambda: hf.MiniMaxM3VLConfig(),
        "counts blocks in positions",
    ),
    "inkling": ("InklingForConditionalGeneration", lambda: hf.InklingConfig(), "count positions by the keys"),
    "unlimited_ocr": (
        "UnlimitedOcrForConditionalGeneration",
        lambda: hf.UnlimitedOcrConfig(),
        "holds the prompt beside a window",
    ),
    "instructblip": (
        "InstructBlipForConditionalGeneration",
        lambda: hf.InstructBlipConfig(
            vision_config=BLIP_VISION, qformer_config=QFORMER, text_config=OPT, image_token_index=99
        ),
        "its generate hands embeddings",
    ),
}
"""Models that are refused, and part of the sentence: a class's name, its configuration, and that part."""
