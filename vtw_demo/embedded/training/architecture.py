"""The embedded model's architecture: an ordinary LLaVA, small, whose decoder starts from layers of SmolLM2-135M."""

from __future__ import annotations

import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

PICTURE_SIDE = 224
PATCH_SIDE = 16
GRID_SIDE = PICTURE_SIDE // PATCH_SIDE

# The decoder's layers, by their numbers in SmolLM2-135M. Layer 11 is the one whose output makes the first token
# the place where later layers' attention rests.
SOURCE_LAYERS = (0, 1, 4, 8, 11, 23, 24, 25, 26, 27, 28, 29)
# So many of them, from the first on, are trained. The others, the last norm and the words stay as they were.
TRAINED_LAYERS = 5
# SmolLM2 has 1536; half of it makes a step of training possible in seconds on two cores.
INTERMEDIATE_SIZE = 768


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlavaForConditionalGeneration:
    """The model with fresh weights: a 6-layer CLIP tower and a Llama decoder in SmolLM2-135M's measures."""
    torch.manual_seed(seed)
    tower = CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=3,
        image_size=PICTURE_SIDE,
        patch_size=PATCH_SIDE,
        hidden_act="gelu_pytorch_tanh",
    )
    decoder = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=576,
        intermediate_size=INTERMEDIATE_SIZE,
        num_hidden_layers=len(SOURCE_LAYERS),
        num_attention_heads=9,
        num_key_value_heads=3,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_theta": 100000.0, "rope_type": "default"},
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=tower,
        text_config=decoder,
        image_token_index=tokenizer.encode("<image>")[0],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """The processor: any picture is scaled to a square, so that nothing of it is cut off."""
    side = {"height": PICTURE_SIDE, "width": PICTURE_SIDE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=side, do_center_crop=False, do_convert_rgb=True),
        tokenizer=tokenizer,
        patch_size=PATCH_SIDE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
