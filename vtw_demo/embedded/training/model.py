"""The embedded model before training: an ordinary LLaVA, small, whose decoder starts from layers of SmolLM2-135M.

`model.json` holds its measures. The decoder has SmolLM2-135M's, but 12 of its 30 layers and half of its MLP's 1536
units: so a step of training takes seconds on two cores.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import (
    CLIPImageProcessorPil,
    LlamaForCausalLM,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vtw_demo.embedded.training.codes import word_codebook
from vtw_demo.embedded.training.tokenizer import SOURCE_FILE, build_tokenizer, fetch_source

MEASURES = json.loads(Path(__file__).with_name("model.json").read_text(encoding="utf-8"))
PICTURE_SIDE, PATCH_SIDE = (MEASURES["vision_config"][name] for name in ("image_size", "patch_size"))
GRID_SIDE = PICTURE_SIDE // PATCH_SIDE
# The decoder's layers, by their numbers in SmolLM2-135M. Layer 11 is the one whose output makes the first token
# the place where later layers' attention rests.
SOURCE_LAYERS = (0, 1, 4, 8, 11, 23, 24, 25, 26, 27, 28, 29)
# So many of them, from the first on, are trained. The others, the last norm and the words stay as they were.
TRAINED_LAYERS = 5


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlavaForConditionalGeneration:
    """The model with fresh weights."""
    torch.manual_seed(seed)
    language = {**MEASURES["text_config"], "vocab_size": len(tokenizer)}
    return LlavaForConditionalGeneration(LlavaConfig.from_dict({**MEASURES, "text_config": language}))


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


def prepare(runs: Path) -> None:
    """The tokenizer and the language model's part of the weights, once for all parts, in `runs`."""
    if (runs / "start.pt").exists():
        return
    folder = fetch_source(runs / "smollm2")
    source_tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, gguf_file=SOURCE_FILE)
    source = LlamaForCausalLM.from_pretrained(folder, gguf_file=SOURCE_FILE, dtype=torch.float32)
    tokenizer = build_tokenizer(source_tokenizer)
    decoder = build_model(tokenizer, 0).model.language_model
    start_decoder(decoder, source, tokenizer, source_tokenizer)
    tokenizer.save_pretrained(runs / "tokenizer")
    unfinished = runs / "start.unfinished"
    book = word_codebook(decoder.embed_tokens.weight, tokenizer)
    torch.save({"decoder": decoder.state_dict(), "book": book}, unfinished)
    unfinished.replace(runs / "start.pt")


def start(options: argparse.Namespace) -> tuple[LlavaForConditionalGeneration, LlavaProcessor, torch.Tensor]:
    """The model before training, its processor and the codes, (codes, width), on the device."""
    torch.set_num_threads(1 if options.device == "cpu" else 4)
    torch.set_default_device(options.device)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(options.runs / "tokenizer")
    model = build_model(tokenizer, options.seed)
    started = torch.load(options.runs / "start.pt", weights_only=True, map_location=options.device)
    decoder = model.model.language_model
    decoder.load_state_dict(started["decoder"])
    start_places(model)
    if options.start_from is not None:
        start_from(model, LlavaForConditionalGeneration.from_pretrained(options.start_from, dtype=torch.float32))
    freeze(decoder)
    if options.compile:
        for layer in (*model.model.vision_tower.encoder.layers, *decoder.layers):
            layer.compile(dynamic=False)
    return model, build_processor(tokenizer), started["book"]


def freeze(decoder: LlamaModel) -> None:
    """What of the language model isn't trained stays as it was."""
    for kept in (decoder.embed_tokens, decoder.norm, *decoder.layers[TRAINED_LAYERS:]):
        kept.requires_grad_(False)


@torch.no_grad()
def start_decoder(
    decoder: LlamaModel,
    source: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    source_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """`decoder` gets the weights of `source`: SOURCE_LAYERS, the last norm and the embeddings of the kept tokens."""
    for layer, number in zip(decoder.layers, SOURCE_LAYERS, strict=True):
        layer.load_state_dict(narrowed(source.model.layers[number].state_dict(), decoder.config.intermediate_size))
    decoder.norm.load_state_dict(source.model.norm.state_dict())
    known = source_tokenizer.get_vocab()
    words = source.model.embed_tokens.weight
    for token, position in tokenizer.get_vocab().items():
        decoder.embed_tokens.weight[position] = words[known[token]] if token in known else words.mean(0)


def narrowed(layer: dict[str, torch.Tensor], width: int) -> dict[str, torch.Tensor]:
    """The weights of a decoder layer with `width` of its MLP's units: those with the largest weights."""
    gate, up, down = (layer[f"mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
    kept = (gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0)).topk(width).indices.sort().values
    mlp = {"mlp.gate_proj.weight": gate[kept], "mlp.up_proj.weight": up[kept], "mlp.down_proj.weight": down[:, kept]}
    return {**layer, **mlp}


@torch.no_grad()
def start_from(model: LlavaForConditionalGeneration, earlier: LlavaForConditionalGeneration) -> None:
    """`model` gets the weights of `earlier` that fit. Layers of the tower that `earlier` lacks change nothing yet."""
    own = model.state_dict()
    fitting = {name: w for name, w in earlier.state_dict().items() if name in own and own[name].shape == w.shape}
    model.load_state_dict(fitting, strict=False)
    for layer in model.model.vision_tower.encoder.layers[len(earlier.model.vision_tower.encoder.layers) :]:
        for module in (layer.self_attn.out_proj, layer.mlp.fc2):
            module.weight.zero_()
            module.bias.zero_()


@torch.no_grad()
def start_places(model: LlavaForConditionalGeneration) -> None:
    """The tower's position embeddings start as waves down and across: random ones told places apart too late."""
    embedding = model.model.vision_tower.embeddings.position_embedding.weight
    place = (torch.arange(GRID_SIDE) + 0.5) / GRID_SIDE
    frequency = torch.logspace(0, 3, embedding.shape[1] // 4, base=2) * torch.pi
    waves = torch.cat([(place[:, None] * frequency).sin(), (place[:, None] * frequency).cos()], dim=1)
    down = waves[:, None].expand(GRID_SIDE, GRID_SIDE, -1)
    embedding[1:] = 0.5 * torch.cat([down, down.transpose(0, 1)], dim=-1).flatten(0, 1)
