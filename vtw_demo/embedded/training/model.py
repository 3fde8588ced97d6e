"""The embedded model, an ordinary LLaVA, small, whose decoder is SmolLM2-135M with fewer words, before and between the
parts of its training. `model.json` holds its measures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vtw_demo.embedded.training.tokenizer import SOURCE_FILE, build_tokenizer, fetch_source
from vtw_demo.errors import UserError
from vtw_demo.files import data_beside

MEASURES = data_beside(__file__, "model.json")
PICTURE_SIDE, PATCH_SIDE = (MEASURES["vision_config"][name] for name in ("image_size", "patch_size"))
GRID_SIDE = PICTURE_SIDE // PATCH_SIDE
TOKENIZER_FOLDER = "tokenizer"
# The share of what the decoder's layers learned in the second part that is gone on with.
LEARNED = 0.5


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlavaForConditionalGeneration:
    torch.manual_seed(seed)
    language = {**MEASURES["text_config"], "vocab_size": len(tokenizer)}
    model = LlavaForConditionalGeneration(LlavaConfig.from_dict({**MEASURES, "text_config": language}))
    start_places(model)
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


def start(runs: Path, seed: int) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """SmolLM2's weights behind a tower and a projector at random; its tokenizer is saved for the later parts."""
    folder = fetch_source(runs / "smollm2")
    source_tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, gguf_file=SOURCE_FILE)
    source = LlamaForCausalLM.from_pretrained(folder, gguf_file=SOURCE_FILE, dtype=torch.float32)
    tokenizer = build_tokenizer(source_tokenizer)
    tokenizer.save_pretrained(runs / TOKENIZER_FOLDER)
    model = build_model(tokenizer, seed)
    known, words = source_tokenizer.get_vocab(), source.model.embed_tokens.weight
    # The one token that it doesn't know, the image's, is never read.
    rows = [known.get(token, 0) for token in tokenizer.convert_ids_to_tokens([*range(len(tokenizer))])]
    model.model.language_model.load_state_dict({**source.model.state_dict(), "embed_tokens.weight": words[rows]})
    return model, build_processor(tokenizer)


def load(runs: Path, part: str) -> tuple[LlavaForConditionalGeneration, LlavaProcessor, dict[str, Any]]:
    """The model as `part` has left it, its processor, and the part's whole checkpoint. Of the second part, half of what
    the decoder's layers learned is taken: weights between those before and after fine-tuning keep more of the language
    model (WiSE-FT, arXiv 2109.01903), here its one sink."""
    path = runs / f"{part}.pt"
    if not path.exists():
        raise UserError(f"{path} is not there: train the part {part} first, if only for 0 steps.")
    saved = torch.load(path, weights_only=True, mmap=True, map_location=torch.get_default_device())
    tokenizer = PreTrainedTokenizerFast.from_pretrained(runs / TOKENIZER_FOLDER)
    model = build_model(tokenizer, 0)
    keep_layers(model, saved["layers"])
    model.load_state_dict(saved["model"])
    if part == "whole":
        before = torch.load(runs / "tower.pt", weights_only=True, mmap=True, map_location=model.device)["model"]
        layers = model.model.language_model.layers
        for name, learned in layers.state_dict().items():
            learned.lerp_(before[f"model.language_model.layers.{name}"], 1 - LEARNED)
    return model, build_processor(tokenizer), saved


def keep_layers(model: LlavaForConditionalGeneration, kept: Sequence[int]) -> None:
    """Leaves only the decoder's layers `kept`, in this order."""
    decoder = model.model.language_model
    decoder.layers = nn.ModuleList(decoder.layers[number] for number in kept)
    for number, layer in enumerate(decoder.layers):
        layer.self_attn.layer_idx = number
    decoder.config.num_hidden_layers = len(kept)


def take_tower(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """`model` gets the vision tower and the projector of the model saved in `folder`."""
    earlier = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model.model.vision_tower.load_state_dict(earlier.model.vision_tower.state_dict())
    model.model.multi_modal_projector.load_state_dict(earlier.model.multi_modal_projector.state_dict())


@torch.no_grad()
def start_places(model: LlavaForConditionalGeneration) -> None:
    """The tower's position embeddings start as waves down and across: random ones told places apart too late."""
    embedding = model.model.vision_tower.embeddings.position_embedding.weight
    place = (torch.arange(GRID_SIDE) + 0.5) / GRID_SIDE
    frequency = torch.logspace(0, 3, embedding.shape[1] // 4, base=2) * torch.pi
    waves = torch.cat([(place[:, None] * frequency).sin(), (place[:, None] * frequency).cos()], dim=1)
    down = waves[:, None].expand(GRID_SIDE, GRID_SIDE, -1)
    embedding[1:] = 0.5 * torch.cat([down, down.transpose(0, 1)], dim=-1).flatten(0, 1)
