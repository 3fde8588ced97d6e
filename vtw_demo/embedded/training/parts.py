"""What a step of each part practises: the tower writes what is at each patch; everything together answers."""

import argparse
import random
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from vtw_demo.embedded.easy_vqa_data import easy_vqa_pictures
from vtw_demo.embedded.scenes import MAXIMUM_OBJECTS, random_scene
from vtw_demo.embedded.training.codes import code_loss, patch_contents, word_codebook
from vtw_demo.embedded.training.model import GRID_SIDE
from vtw_demo.embedded.training.packing import IGNORED, PackedSamples, pack
from vtw_demo.embedded.training.practice import Asked, mixed_picture, practice_picture
from vtw_demo.embedded.training.trainer import Answered, Trainer
from vtw_demo.embedded.unknown_pictures import photos

Practise = Callable[[random.Random], tuple[torch.Tensor, list[Answered]]]
# The grid that is trained on first: its rows of tokens are shorter.
COARSE_SIDE = 7


def write_codes(trainer: Trainer, processor: LlavaProcessor, options: argparse.Namespace) -> Practise:
    """The tower and the projector learn to write what is at each patch, in codes."""
    model = trainer.model.model
    book = word_codebook(model.language_model.embed_tokens.weight, processor.tokenizer).to(options.device)

    def practise(generator: random.Random) -> tuple[torch.Tensor, list[Answered]]:
        scenes = [random_scene(generator, generator.randint(1, MAXIMUM_OBJECTS)) for _ in range(options.batch)]
        pictures = [practice_picture(scene, generator) for scene in scenes]
        with trainer.autocast:
            written = visual_tokens(trainer.model, processor, pictures, GRID_SIDE)
        loss, right = code_loss(written, patch_contents(scenes, GRID_SIDE), book)
        return loss, [(name, 0, named) for name, named in right.items()]

    return practise


def answer(trainer: Trainer, processor: LlavaProcessor, options: argparse.Namespace) -> Practise:
    """Everything learns to answer about pictures; in the last `fine_steps` steps on the model's own grid."""
    easy_vqa, unknown = easy_vqa_pictures("train"), photos()

    def practise(generator: random.Random) -> tuple[torch.Tensor, list[Answered]]:
        progress = trainer.progress
        mixed = [mixed_picture(easy_vqa, unknown, progress, options.turns, generator) for _ in range(options.batch)]
        pictures, questions, scenes = (list(column) for column in zip(*mixed, strict=True))
        side = GRID_SIDE if trainer.step >= options.steps - options.fine_steps else COARSE_SIDE
        with trainer.autocast:
            samples, hidden = read(trainer.model, processor, pictures, questions, options.length + side**2, side)
        loss, right = answer_loss(trainer.model, samples, hidden)
        objects = [len(scene.objects) if scene else 0 for scene in scenes]
        return loss, [(kind, objects[row], fits) for (row, kind), fits in zip(samples.asked, right, strict=True)]

    return practise


def visual_tokens(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, pictures: Sequence[Image.Image], side: int
) -> torch.Tensor:
    """The projected tokens of each picture, those of neighbouring patches averaged to a grid of `side` by `side`:
    (batch, tokens, width)."""
    shown = processor.image_processor(pictures, return_tensors="pt").to(model.device)
    seen = model.model.vision_tower(**shown).last_hidden_state[:, 1:]
    seen = seen.unflatten(1, (side, GRID_SIDE // side, side, GRID_SIDE // side)).mean((2, 4)).flatten(1, 2)
    return model.model.multi_modal_projector(seen).float()


def read(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    pictures: Sequence[Image.Image],
    questions: Sequence[Sequence[Asked]],
    length: int,
    side: int,
) -> tuple[PackedSamples, torch.Tensor]:
    """The pictures with their questions, packed, and the decoder's last hidden states: (batch, sequence, width).
    Every layer sees every visual token."""
    samples = pack(processor, questions, length, side)
    visual = (samples.input_ids == processor.image_token_id)[..., None]
    words = model.get_input_embeddings()(samples.input_ids)
    decoded = model.model.language_model(
        inputs_embeds=words.masked_scatter(visual, visual_tokens(model, processor, pictures, side)),
        position_ids=samples.position_ids,
        attention_mask=samples.attention_mask(),
        use_cache=False,
    )
    return samples, decoded.last_hidden_state


def answer_loss(
    model: LlavaForConditionalGeneration, samples: PackedSamples, hidden: torch.Tensor
) -> tuple[torch.Tensor, list[bool]]:
    """The mean loss on the answers' tokens; and of each turn, whether every token of its answer was right
    (teacher-forced)."""
    answered = samples.labels != IGNORED
    labels, turn = samples.labels[answered], samples.turns[answered]
    # A long description must not outweigh the short answers: a turn counts by the root of its length.
    weight = turn.bincount().float().rsqrt()[turn]
    logits = model.lm_head(hidden[answered].float())
    loss = (nn.functional.cross_entropy(logits, labels, reduction="none") * weight).sum() / weight.sum()
    wrong = turn.bincount((logits.argmax(-1) != labels).float()).tolist()
    return loss, [not number for number in wrong]
