"""The three parts of the training: the tower writes the visual code, the decoder reads it, both answer together."""

from __future__ import annotations

import argparse
import random
import zlib
from typing import Any

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from vtw_demo.embedded.easy_vqa_data import easy_vqa_pictures
from vtw_demo.embedded.scenes import MAXIMUM_OBJECTS, Scene, random_scene
from vtw_demo.embedded.training.architecture import GRID_SIDE, TRAINED_LAYERS
from vtw_demo.embedded.training.codes import code_loss, names_right, patch_contents
from vtw_demo.embedded.training.packing import IGNORED, PackedSamples, pack, pixels
from vtw_demo.embedded.training.practice import (
    Curriculum,
    Pictures,
    Progress,
    Shares,
    mixed_pictures,
    practice_picture,
    practice_scene,
    scene_questions,
)
from vtw_demo.embedded.training.trainer import Trainer
from vtw_demo.embedded.unknown_pictures import photos

# The decoder's own part shows it the scene on a coarser grid, whose rows are shorter.
COARSE_SIDE = 7
# How unsure each code of the coded tokens is made: the tower's are never perfect.
CODE_NOISE = 0.1


def train_tower(model: LlavaForConditionalGeneration, book: torch.Tensor, options: argparse.Namespace) -> None:
    """The tower and the projector learn to write what is at each patch, in codes."""
    writer = writing_part(model)
    trainer = Trainer(writer, options, others_rate=0.12)
    trainer.restore()

    def practise(seed: str) -> tuple[torch.Tensor, dict[str, Any]]:
        generator = random.Random(seed)
        scenes = [tower_scene(generator) for _ in range(options.batch // options.processes)]
        shown = pixels([practice_picture(scene, generator) for scene in scenes]).to(options.device)
        contents = patch_contents(scenes, GRID_SIDE).to(options.device)
        with trainer.autocast:
            written = writer["projector"](writer["tower"](shown).last_hidden_state[:, 1:]).float()
        right = names_right(written.detach(), contents, book)
        return code_loss(written, contents, book), {name: f"{share:.3f}" for name, share in right.items()}

    trainer.run(practise)


def train_decoder(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, book: torch.Tensor, options: argparse.Namespace
) -> None:
    """The decoder's trained layers learn to answer from the codes themselves, without the frozen ones above them."""
    decoder = model.model.language_model
    decoder.layers = decoder.layers[:TRAINED_LAYERS]
    progress = Progress(Curriculum(options.mastery, options.level), Shares(tuple(options.emphasis)))
    trainer = Trainer(decoder, options, progress)
    trainer.restore()
    length = options.length - GRID_SIDE**2 + COARSE_SIDE**2

    def practise(seed: str) -> tuple[torch.Tensor, dict[str, Any]]:
        generator = random.Random(seed)
        noise = torch.Generator(options.device).manual_seed(zlib.crc32(seed.encode()))
        scenes = [practice_scene(generator, progress.curriculum) for _ in range(options.batch // options.processes)]
        asked = [scene_questions(scene, options.turns, generator, progress.shares.kinds()) for scene in scenes]
        samples = pack(processor, asked, length, COARSE_SIDE).to(options.device)
        weights = patch_contents(scenes, COARSE_SIDE).to(options.device).weights
        unsure = CODE_NOISE * torch.randn(weights.shape, generator=noise, device=options.device)
        visual = (samples.input_ids == processor.image_token_id)[..., None]
        words = model.get_input_embeddings()(samples.input_ids)
        embedded = words.masked_scatter(visual, (weights + unsure) @ book)
        with trainer.autocast:
            hidden = decoder(
                inputs_embeds=embedded,
                position_ids=samples.position_ids,
                attention_mask=samples.attention_mask(),
                use_cache=False,
            ).last_hidden_state
        loss, right = answer_loss(model, samples, hidden)
        progress.record(right, samples.kinds, scenes, trainer.step + 1)
        return loss, progress.figures()

    trainer.run(practise)


def train_answers(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, book: torch.Tensor, options: argparse.Namespace
) -> None:
    """Everything learns to answer about pictures; writing the code stays a tenth of the loss."""
    others = Pictures(easy_vqa_pictures("train"), photos())
    progress = Progress(Curriculum(options.mastery, options.level), Shares(tuple(options.emphasis)))
    trainer = Trainer(model, options, progress)
    if not trainer.restore() and options.start_from is None:
        tower = torch.load(options.runs / "tower.pt", weights_only=True, map_location=options.device)
        writing_part(model).load_state_dict(tower["model"], strict=False)
        decoder = torch.load(options.runs / "decoder.pt", weights_only=True, map_location=options.device)
        model.model.language_model.load_state_dict(decoder["training"]["model"], strict=False)
        progress.restore(decoder)

    def practise(seed: str) -> tuple[torch.Tensor, dict[str, Any]]:
        pictures, asked, scenes = mixed_pictures(
            others, progress, random.Random(seed), options.batch // options.processes, options.turns
        )
        samples = pack(processor, asked, options.length).to(options.device)
        with trainer.autocast:
            output = model.model(
                input_ids=samples.input_ids,
                pixel_values=pixels(pictures).to(options.device),
                position_ids=samples.position_ids,
                attention_mask=samples.attention_mask(),
                use_cache=False,
            )
        loss, right = answer_loss(model, samples, output.last_hidden_state)
        drawn = {row: scene for row, scene in enumerate(scenes) if scene is not None}
        if drawn:
            contents = patch_contents(list(drawn.values()), GRID_SIDE).to(options.device)
            written = output.image_hidden_states.float().view(len(scenes), -1, book.shape[1])
            loss = loss + 0.1 * code_loss(written[list(drawn)], contents, book)
        progress.record(right, samples.kinds, scenes, trainer.step + 1)
        return loss, progress.figures()

    trainer.run(practise)
    if torch.distributed.get_rank() == 0:
        model.bfloat16().save_pretrained(options.out)
        processor.save_pretrained(options.out)
        print(f"saved to {options.out}")


def writing_part(model: LlavaForConditionalGeneration) -> nn.ModuleDict:
    """Tower and projector, which write the visual tokens."""
    return nn.ModuleDict({"tower": model.model.vision_tower, "projector": model.model.multi_modal_projector})


def tower_scene(generator: random.Random) -> Scene:
    """Characters are small and rare: of the scenes without one, half are drawn anew."""
    scene = random_scene(generator, generator.randint(1, MAXIMUM_OBJECTS))
    if not any(item.character for item in scene.objects) and generator.random() < 0.5:
        scene = random_scene(generator, generator.randint(1, MAXIMUM_OBJECTS))
    return scene


def answer_loss(
    model: LlavaForConditionalGeneration, samples: PackedSamples, hidden: torch.Tensor
) -> tuple[torch.Tensor, list[list[bool]]]:
    """The mean loss on the answers' tokens, and for each row which turns were right in every token (teacher-forced)."""
    answered = samples.labels != IGNORED
    labels = samples.labels[answered]
    row_turn = torch.arange(len(samples.labels))[:, None] * 1000 + samples.turns
    _, turn, lengths = row_turn[answered].unique(return_inverse=True, return_counts=True)
    # A long description must not outweigh the short answers: a turn counts by the root of its length.
    weight = lengths.float().rsqrt()[turn]
    logits = model.lm_head(hidden[answered].float())
    loss = (nn.functional.cross_entropy(logits, labels, reduction="none") * weight).sum() / weight.sum()
    wrong = torch.zeros(len(lengths)).index_add_(0, turn, (logits.argmax(-1) != labels).float())
    by_row = (wrong == 0).split([len(kinds) for kinds in samples.kinds])
    return loss, [row.tolist() for row in by_row]
