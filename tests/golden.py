"""The numbers of the authors' own implementation, the model and prompt that they were made with; and a smaller one."""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

GOLDEN = np.load(Path(__file__).parent / "data" / "vtw_golden.npz")
IMAGE = 89
LAYERS = 4
VISUAL = 4
"""Of `random_llava`: the visual tokens that one picture makes."""


class Projector(nn.Module):
    """Stands in for a trained projector: any picture becomes the fixture's image embeddings."""

    def __init__(self, embeddings: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("embeddings", embeddings)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        return self.embeddings.expand(image_features.shape[0], -1, -1)


def build_model() -> LlavaForConditionalGeneration:
    text = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=90,
        rms_norm_eps=1e-6,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    vision = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=48,
        patch_size=2,
        projection_dim=8,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-1)
    model = LlavaForConditionalGeneration(config).eval()
    state = {name[2:]: torch.from_numpy(GOLDEN[name]) for name in GOLDEN.files if name.startswith("w:")}
    model.lm_head.weight.data = state.pop("lm_head.weight")
    model.model.language_model.load_state_dict({name.removeprefix("model."): weight for name, weight in state.items()})
    model.model.multi_modal_projector = Projector(torch.from_numpy(GOLDEN["img"]))
    return model


def inputs() -> dict[str, torch.Tensor]:
    image = torch.full((1, 576), IMAGE)
    ids = torch.cat([torch.from_numpy(GOLDEN["ids_sys"]), image, torch.from_numpy(GOLDEN["ids_txt"])], dim=1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.zeros(1, 3, 48, 48),
    }


def random_llava(key_value_heads: int = 2) -> LlavaForConditionalGeneration:
    """The same at each call."""
    torch.manual_seed(0)
    text = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=key_value_heads,
        vocab_size=90,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
        projection_dim=8,
        initializer_range=0.3,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        initializer_range=0.3,
    )
    return LlavaForConditionalGeneration(config).eval()
