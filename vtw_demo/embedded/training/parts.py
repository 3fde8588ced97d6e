"""What a step of each part practises: the tower names what is at each patch; everything together answers."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from vtw_demo.embedded.scenes import MAXIMUM_OBJECTS, random_scene
from vtw_demo.embedded.training.model import GRID_SIDE
from vtw_demo.embedded.training.naming import naming_loss, patch_names, word_directions
from vtw_demo.embedded.training.packing import IGNORED, PackedSamples, pack
from vtw_demo.embedded.training.practice import Asked, mixed_picture, practice_picture
from vtw_demo.embedded.training.trainer import Practised, Trainer

# The grid that is trained on first: its rows of tokens are shorter. A row's positions besides the visual tokens', and
# the questions asked about a scene, as far as they fit.
COARSE_SIDE, ROOM, TURNS = 7, 207, 14


def name_patches(trainer: Trainer, processor: LlavaProcessor, generator: random.Random) -> Practised:
    directions = word_directions(trainer.model.model.language_model.embed_tokens.weight, processor.tokenizer)
    scenes = [random_scene(generator, generator.randint(1, MAXIMUM_OBJECTS)) for _ in range(trainer.options.batch)]
    pictures = [practice_picture(scene, generator) for scene in scenes]
    with trainer.autocast:
        tokens = visual_tokens(trainer.model, processor, pictures, GRID_SIDE)
    loss, right = naming_loss(tokens, patch_names(scenes, GRID_SIDE), directions)
    return loss, [(name, 0, share) for name, share in right.items()]


def answer(trainer: Trainer, processor: LlavaProcessor, generator: random.Random) -> Practised:
    """Everything learns to answer about pictures; in the last `fine_steps` steps on the model's own grid."""
    options = trainer.options
    mixed = [mixed_picture(trainer.progress, TURNS, generator) for _ in range(options.batch)]
    pictures, questions, scenes = (list(column) for column in zip(*mixed, strict=True))
    side = GRID_SIDE if trainer.step >= options.steps - options.fine_steps else COARSE_SIDE
    with trainer.autocast:
        samples, inputs = embed(trainer.model, processor, pictures, questions, ROOM + side**2, side)
        hidden = decode(trainer.model, samples, inputs).last_hidden_state
    loss, right = answer_loss(trainer.model, samples, hidden)
    objects = [len(scenes[row].objects) if scenes[row] else 0 for row, _ in samples.ends]
    return loss, list(zip(samples.kinds, objects, right, strict=True))


def visual_tokens(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, pictures: Sequence[Image.Image], side: int
) -> torch.Tensor:
    """The projected tokens, those of neighbouring patches averaged to `side` by `side`: (batch, tokens, width)."""
    shown = processor.image_processor(pictures, return_tensors="pt").to(model.device)
    seen = model.model.vision_tower(**shown).last_hidden_state[:, 1:]
    seen = seen.unflatten(1, (side, GRID_SIDE // side, side, GRID_SIDE // side)).mean((2, 4)).flatten(1, 2)
    return model.model.multi_modal_projector(seen).float()


def embed(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    pictures: Sequence[Image.Image],
    questions: Sequence[Sequence[Asked]],
    length: int,
    side: int,
) -> tuple[PackedSamples, torch.Tensor]:
    """The pictures with their questions, packed, and what the decoder reads: (batch, sequence, width)."""
    samples = pack(processor, questions, length, side)
    visual = (samples.input_ids == processor.image_token_id)[..., None]
    words = model.get_input_embeddings()(samples.input_ids)
    return samples, words.masked_scatter(visual, visual_tokens(model, processor, pictures, side))


def decode(model: LlavaForConditionalGeneration, samples: PackedSamples, inputs: torch.Tensor, **options: Any) -> Any:
    """The decoder's output. Every layer sees every visual token."""
    seen = {"attention_mask": samples.attention_mask(), "position_ids": samples.position_ids, "use_cache": False}
    return model.model.language_model(inputs_embeds=inputs, **{**seen, **options})


def answer_loss(
    model: LlavaForConditionalGeneration, samples: PackedSamples, hidden: torch.Tensor
) -> tuple[torch.Tensor, list[bool]]:
    """The answers' mean loss; and of each turn, whether every token of its answer was right (teacher-forced)."""
    answered = samples.labels != IGNORED
    labels, turn = samples.labels[answered], samples.turns[answered]
    # A long description must not outweigh the short answers: a turn counts by the root of its length.
    weight = turn.bincount().float().rsqrt()[turn]
    logits = model.lm_head(hidden[answered].float())
    loss = (nn.functional.cross_entropy(logits, labels, reduction="none") * weight).sum() / weight.sum()
    wrong = turn.bincount((logits.argmax(-1) != labels).float()).tolist()
    return loss, [not number for number in wrong]
