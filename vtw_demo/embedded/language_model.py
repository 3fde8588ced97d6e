"""The language model that the decoder starts from: layers and words of SmolLM2-135M-Instruct."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, LlamaModel, PreTrainedTokenizerFast

from vtw_demo.embedded.architecture import SOURCE_LAYERS
from vtw_demo.embedded.codes import CODES, NAMES, code_of, codebook
from vtw_demo.embedded.easy_vqa_data import easy_vqa_texts
from vtw_demo.embedded.phrasings import every_phrasing
from vtw_demo.embedded.questions import KINDS, ask_several
from vtw_demo.embedded.scenes import random_scene
from vtw_demo.embedded.tokenizer import SOURCE_FILE, corpus, cut

# The merges that byte-pair encoding learned first, and so the most frequent tokens: words that users may ask with.
GENERAL_MERGES = 4000


def source_model(folder: Path) -> LlamaForCausalLM:
    """SmolLM2 in float32, its weights dequantized from the package's file."""
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=SOURCE_FILE, dtype=torch.float32)
    assert isinstance(model, LlamaForCausalLM)
    return model


def build_tokenizer(source: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """SmolLM2's tokenizer, cut to its most frequent tokens and all that the questions and answers need."""
    merges = json.loads(source.backend_tokenizer.to_str())["model"]["merges"]
    tokens = ["".join(merge) for merge in merges[:GENERAL_MERGES]]
    frequent = source.backend_tokenizer.decoder
    assert frequent is not None
    texts = [frequent.decode([token]) for token in tokens]
    generator = random.Random(0)
    for _ in range(2000):
        scene = random_scene(generator, generator.randint(1, 6))
        for question in ask_several(scene, 4, generator, KINDS):
            texts += [question.text, question.answer]
    return cut(source, [*texts, *corpus(1000), *easy_vqa_texts(), *every_phrasing()])


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
def word_codebook(words: torch.Tensor, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """The visual code in the language model's terms: (codes, width), at right angles to each other.

    A code that names something lies as near as it can to the embedding of its words, so that the decoder meets
    words it knows; the others are random.
    """
    centred = words.detach().cpu().float() - words.detach().cpu().float().mean(0)
    wanted = codebook(words.shape[1])
    for name, values in NAMES.items():
        for value in values:
            wanted[code_of(name, value)] = torch.nn.functional.normalize(
                centred[tokenizer.encode(f" {value}")].mean(0), dim=0
            )
    # The nearest matrix of which all rows are at right angles (the polar factor).
    left, _, right = torch.linalg.svd(wanted, full_matrices=False)
    assert left.shape == (CODES, CODES)
    return left @ right
