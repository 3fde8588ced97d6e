"""The three parts of the training: the tower writes the visual code, the decoder reads it, both answer together."""

import argparse
import random
from collections.abc import Mapping, Sequence

import torch
import torch.distributed
from torch import nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from vtw_demo.embedded.easy_vqa_data import easy_vqa_pictures
from vtw_demo.embedded.scenes import MAXIMUM_OBJECTS, Scene, random_scene
from vtw_demo.embedded.training.codes import code_loss, patch_contents
from vtw_demo.embedded.training.model import GRID_SIDE, TRAINED_LAYERS
from vtw_demo.embedded.training.packing import IGNORED, PackedSamples, pack
from vtw_demo.embedded.training.practice import (
    Progress,
    mixed_picture,
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


def train_tower(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, book: torch.Tensor, options: argparse.Namespace
) -> None:
    """The tower and the projector learn to write what is at each patch, in codes."""
    writer = writing_part(model)
    trainer = Trainer(writer, options, others_rate=0.12)

    def practise(generator: random.Random) -> tuple[torch.Tensor, Mapping[str, float]]:
        scenes = [tower_scene(generator) for _ in range(options.batch // options.processes)]
        pictures = [practice_picture(scene, generator) for scene in scenes]
        shown = processor.image_processor(pictures, return_tensors="pt").to(options.device)
        with trainer.autocast:
            written = writer["projector"](writer["tower"](**shown).last_hidden_state[:, 1:]).float()
        return code_loss(written, patch_contents(scenes, GRID_SIDE), book)

    trainer.run(practise)


def train_decoder(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, book: torch.Tensor, options: argparse.Namespace
) -> None:
    """The decoder's trained layers learn to answer from the codes themselves, without the frozen ones above them."""
    decoder = model.model.language_model
    decoder.layers = decoder.layers[:TRAINED_LAYERS]
    trainer = Trainer(decoder, options)
    length = options.length - GRID_SIDE**2 + COARSE_SIDE**2

    def practise(generator: random.Random) -> tuple[torch.Tensor, Mapping[str, float]]:
        progress, count = trainer.progress, options.batch // options.processes
        scenes = [practice_scene(generator, progress) for _ in range(count)]
        kinds = progress.kinds(options.emphasis)
        questions = [scene_questions(scene, options.turns, generator, kinds) for scene in scenes]
        samples = pack(processor, questions, length, COARSE_SIDE)
        contents = patch_contents(scenes, COARSE_SIDE)
        visual = (samples.input_ids == processor.image_token_id)[..., None]
        coded = (contents + CODE_NOISE * torch.randn_like(contents)) @ book
        with trainer.autocast:
            hidden = decoder(
                inputs_embeds=model.get_input_embeddings()(samples.input_ids).masked_scatter(visual, coded),
                position_ids=samples.position_ids,
                attention_mask=samples.attention_mask(),
                use_cache=False,
            ).last_hidden_state
        loss, answered = answer_loss(model, samples, hidden, scenes)
        return loss, trainer.record(answered)

    trainer.run(practise)


def train_answers(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, book: torch.Tensor, options: argparse.Namespace
) -> None:
    """Everything learns to answer about pictures; writing the code stays a tenth of the loss."""
    easy_vqa, unknown = easy_vqa_pictures("train"), photos()
    trainer = Trainer(model, options)
    if trainer.step == 0 and options.start_from is None:
        for part, learner in (("tower", writing_part(model)), ("decoder", model.model.language_model)):
            learned = torch.load(options.runs / f"{part}.pt", weights_only=True, map_location=options.device)
            learner.load_state_dict(learned["model"], strict=False)
            trainer.progress = Progress(**learned["progress"])

    def practise(generator: random.Random) -> tuple[torch.Tensor, Mapping[str, float]]:
        progress, count = trainer.progress, options.batch // options.processes
        kinds = progress.kinds(options.emphasis)
        mixed = [mixed_picture(easy_vqa, unknown, progress, kinds, options.turns, generator) for _ in range(count)]
        pictures, questions, scenes = (list(column) for column in zip(*mixed, strict=True))
        samples = pack(processor, questions, options.length)
        shown = processor.image_processor(pictures, return_tensors="pt").to(options.device)
        with trainer.autocast:
            output = model.model(
                **shown,
                input_ids=samples.input_ids,
                position_ids=samples.position_ids,
                attention_mask=samples.attention_mask(),
                use_cache=False,
            )
        loss, answered = answer_loss(model, samples, output.last_hidden_state, scenes)
        drawn = [row for row, scene in enumerate(scenes) if scene is not None]
        if drawn:
            written = output.image_hidden_states.float().view(count, -1, book.shape[1])[drawn]
            loss = loss + 0.1 * code_loss(written, patch_contents([scenes[row] for row in drawn], GRID_SIDE), book)[0]
        return loss, trainer.record(answered)

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
    model: LlavaForConditionalGeneration, samples: PackedSamples, hidden: torch.Tensor, scenes: Sequence[Scene | None]
) -> tuple[torch.Tensor, list[tuple[str, int, bool]]]:
    """The mean loss on the answers' tokens; and each turn's kind, its scene's number of objects, and whether every
    token of the answer was right (teacher-forced)."""
    answered = samples.labels != IGNORED
    labels, turn = samples.labels[answered], samples.turns[answered]
    # A long description must not outweigh the short answers: a turn counts by the root of its length.
    weight = turn.bincount().float().rsqrt()[turn]
    logits = model.lm_head(hidden[answered].float())
    loss = (nn.functional.cross_entropy(logits, labels, reduction="none") * weight).sum() / weight.sum()
    wrong = turn.bincount((logits.argmax(-1) != labels).float()).tolist()
    objects = [len(scene.objects) if scene else 0 for scene in scenes]
    return loss, [(kind, objects[row], not number) for (row, kind), number in zip(samples.asked, wrong, strict=True)]


PARTS = {"tower": train_tower, "decoder": train_decoder, "answers": train_answers}
