"""Trains the embedded model, from nothing, in one command: python -m vtw_demo.embedded.training

The tower and projector learn to write what is at each patch in a fixed code, the decoder learns to answer from that
code, then everything together learns to answer. No step of it withdraws, drops or masks a visual token in any layer.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import tempfile
import zlib
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing
from torch import nn
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

from vtw_demo.embedded.architecture import GRID_SIDE, build_model, build_processor
from vtw_demo.embedded.codes import code_loss, codebook, names_right, patch_contents, start_words
from vtw_demo.embedded.easy_vqa_data import easy_vqa_pictures
from vtw_demo.embedded.practice import Curriculum, Shares, mixed_pictures, practice_scene, scene_questions
from vtw_demo.embedded.questions import SHORT_ANSWER_KINDS
from vtw_demo.embedded.samples import IGNORED, PackedSamples, pack, pixels
from vtw_demo.embedded.scenes import MAXIMUM_OBJECTS, Scene, draw, random_scene
from vtw_demo.embedded.stage import Stage, processes, rank, save_checkpoint
from vtw_demo.embedded.tokenizer import corpus, cut, fetch_source_tokenizer

# The decoder's own stage shows it the scene on a coarser grid, whose rows are two thirds as long.
COARSE_SIDE = 7
# How unsure the coded tokens are made, in lengths of a code: the tower's are never perfect.
CODE_NOISE = 0.1


def answer_loss(
    model: LlavaForConditionalGeneration, samples: PackedSamples, hidden: torch.Tensor
) -> tuple[torch.Tensor, list[list[bool]]]:
    """The loss on the answers' tokens, from the decoder's last hidden states, and for each row which turns were
    right in every token (teacher-forced)."""
    answered = samples.labels != IGNORED
    logits, labels = model.lm_head(hidden[answered]), samples.labels[answered]
    row_turn = torch.arange(len(samples.labels))[:, None] * 1000 + samples.turns
    _, turn, lengths = row_turn[answered].unique(return_inverse=True, return_counts=True)
    # A long description must not outweigh the short answers: a turn counts by the root of its length.
    weight = lengths.float().rsqrt()[turn]
    loss = (nn.functional.cross_entropy(logits, labels, reduction="none") * weight).sum() / weight.sum()
    wrong = torch.zeros(len(lengths)).index_add_(0, turn, (logits.argmax(-1) != labels).float())
    right, start = [], 0
    for kinds in samples.kinds:
        right.append((wrong[start : start + len(kinds)] == 0).tolist())
        start += len(kinds)
    return loss, right


def record(
    right: list[list[bool]],
    samples: PackedSamples,
    scenes: list[Scene | None],
    curriculum: Curriculum,
    shares: Shares,
    step: int,
) -> None:
    newest: list[bool] = []
    for row_right, kinds, scene in zip(right, samples.kinds, scenes, strict=True):
        for is_right, kind in zip(row_right, kinds, strict=True):
            shares.record(kind, is_right)
            if scene is not None and len(scene.objects) == curriculum.level and kind in SHORT_ANSWER_KINDS:
                newest.append(is_right)
    counts = torch.tensor([float(sum(newest)), float(len(newest))])
    torch.distributed.all_reduce(counts)
    if counts[1] > 0:
        curriculum.record(step, (counts[0] / counts[1]).item())


def train_tower(model: LlavaForConditionalGeneration, options: argparse.Namespace) -> None:
    """The tower and the projector learn to write what is at each patch, in codes."""
    book, checkpoint = codebook(model.lm_head.in_features).to(options.device), options.runs / "tower.pt"
    writer = nn.ModuleDict({"tower": model.model.vision_tower, "projector": model.model.multi_modal_projector})
    stage = Stage(writer, options.rate, options.tower_steps, options.tower_steps // 2, others_rate=0.12)
    if checkpoint.exists():
        stage.restore(torch.load(checkpoint, weights_only=True, map_location=options.device))
    with tqdm(total=options.tower_steps, initial=stage.step, desc="tower", disable=rank() > 0) as bar:
        while stage.step < options.tower_steps:
            generator = random.Random(f"{options.seed} tower {stage.step} {rank()}")
            scenes = [
                random_scene(generator, generator.randint(1, MAXIMUM_OBJECTS))
                for _ in range(options.batch // processes())
            ]
            shown = pixels([draw(scene) for scene in scenes]).to(options.device)
            contents = patch_contents(scenes, GRID_SIDE).to(options.device)
            written = writer["projector"](writer["tower"](shown).last_hidden_state[:, 1:])
            loss = code_loss(written, contents, book)
            stage.take_step(loss)
            right = names_right(written.detach(), contents, book)
            bar.set_postfix(loss=f"{loss.item():.3f}", **{name: f"{share:.2f}" for name, share in right.items()})
            bar.update()
            if stage.step % 100 == 0 or stage.step == options.tower_steps:
                save_checkpoint(checkpoint, stage.state())


def train_decoder(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, options: argparse.Namespace
) -> Curriculum:
    """The decoder learns to answer from the codes themselves; returns how far its curriculum came."""
    book, checkpoint = codebook(model.lm_head.in_features).to(options.device), options.runs / "decoder.pt"
    curriculum, shares = Curriculum(options.mastery, options.level), Shares(tuple(options.emphasis))
    decoder = model.model.language_model
    stage = Stage(decoder, options.rate, options.decoder_steps, options.decoder_steps // 2)
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=options.device)
        stage.restore(saved["training"])
        curriculum = Curriculum(**saved["curriculum"])
    length = options.length - GRID_SIDE**2 + COARSE_SIDE**2
    with tqdm(total=options.decoder_steps, initial=stage.step, desc="decoder", disable=rank() > 0) as bar:
        while stage.step < options.decoder_steps:
            seed = f"{options.seed} decoder {stage.step} {rank()}"
            generator, noise = (
                random.Random(seed),
                torch.Generator(options.device).manual_seed(zlib.crc32(seed.encode())),
            )
            scenes = [practice_scene(generator, curriculum) for _ in range(options.batch // processes())]
            asked = [scene_questions(scene, options.turns, generator, shares.kinds()) for scene in scenes]
            samples = pack(processor, asked, length, COARSE_SIDE).to(options.device)
            tokens = patch_contents(scenes, COARSE_SIDE).to(options.device).weights @ book
            tokens = tokens + CODE_NOISE * torch.randn(tokens.shape, generator=noise, device=options.device)
            visual = (samples.input_ids == processor.image_token_id)[..., None]
            words = model.get_input_embeddings()(samples.input_ids)
            hidden = decoder(
                inputs_embeds=words.masked_scatter(visual, tokens),
                position_ids=samples.position_ids,
                attention_mask=samples.attention_mask(),
                use_cache=False,
            ).last_hidden_state
            loss, right = answer_loss(model, samples, hidden)
            stage.take_step(loss)
            record(right, samples, list(scenes), curriculum, shares, stage.step)
            bar.set_postfix(loss=f"{loss.item():.3f}", level=curriculum.level, **shares.figures())
            bar.update()
            if stage.step % 50 == 0 or stage.step == options.decoder_steps:
                save_checkpoint(checkpoint, {"training": stage.state(), "curriculum": vars(curriculum)})
    return curriculum


def train_answers(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    curriculum: Curriculum,
    options: argparse.Namespace,
) -> None:
    """Everything learns to answer about pictures, a quarter of them easy-vqa's; the code stays a tenth of the loss."""
    book, checkpoint = codebook(model.lm_head.in_features).to(options.device), options.runs / "answers.pt"
    pictured, shares = easy_vqa_pictures("train"), Shares(tuple(options.emphasis))
    stage = Stage(model, options.joint_rate, options.steps, options.cooldown)
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=options.device)
        stage.restore(saved["training"])
        curriculum = Curriculum(**saved["curriculum"])
    written: list[torch.Tensor] = []
    hook = model.model.multi_modal_projector.register_forward_hook(lambda *call: written.append(call[-1]))
    with tqdm(total=options.steps, initial=stage.step, desc="answers", disable=rank() > 0) as bar:
        while stage.step < options.steps:
            generator = random.Random(f"{options.seed} answers {stage.step} {rank()}")
            pictures, asked, scenes = mixed_pictures(
                pictured, curriculum, shares.kinds(), generator, options.batch // processes(), options.turns
            )
            samples = pack(processor, asked, options.length).to(options.device)
            written.clear()
            hidden = model.model(
                input_ids=samples.input_ids,
                pixel_values=pixels(pictures).to(options.device),
                position_ids=samples.position_ids,
                attention_mask=samples.attention_mask(),
                use_cache=False,
            ).last_hidden_state
            loss, right = answer_loss(model, samples, hidden)
            drawn = [row for row, scene in enumerate(scenes) if scene is not None]
            if drawn:
                contents = patch_contents([scene for scene in scenes if scene is not None], GRID_SIDE)
                tokens = written[0].view(len(scenes), -1, book.shape[1])[drawn]
                loss = loss + 0.1 * code_loss(tokens, contents.to(options.device), book)
            stage.take_step(loss)
            record(right, samples, scenes, curriculum, shares, stage.step)
            bar.set_postfix(loss=f"{loss.item():.3f}", level=curriculum.level, **shares.figures())
            bar.update()
            if stage.step % 50 == 0 or stage.step == options.steps:
                save_checkpoint(checkpoint, {"training": stage.state(), "curriculum": vars(curriculum)})
    hook.remove()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("assets/embedded"), help="where the model is saved")
    parser.add_argument("--runs", type=Path, default=Path("runs/embedded"), help="checkpoints; a run goes on from them")
    parser.add_argument("--start-from", type=Path, help="a model saved earlier; otherwise all weights are fresh")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, help="they share each step's pictures; by default one a core or GPU")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=shutil.which("g++") is not None,
        help="compile the layers, which takes a C++ compiler; a step then takes two thirds of the time",
    )
    parser.add_argument("--tower-steps", type=int, default=1500)
    parser.add_argument("--decoder-steps", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=600, help="steps of everything together")
    parser.add_argument("--cooldown", type=int, default=570, help="last steps, in which the learning rate falls to 0")
    parser.add_argument("--batch", type=int, default=32, help="pictures a step")
    parser.add_argument("--turns", type=int, default=18, help="questions asked about a scene, as far as they fit")
    parser.add_argument("--length", type=int, default=384, help="positions a row")
    parser.add_argument("--rate", type=float, default=0.012, help="Muon's peak learning rate for tower and decoder")
    parser.add_argument("--joint-rate", type=float, default=0.006, help="and for everything together")
    parser.add_argument("--level", type=int, default=1, help="objects in the first scenes")
    parser.add_argument("--mastery", type=float, default=0.8, help="share right before scenes get one object more")
    parser.add_argument(
        "--emphasis",
        nargs="*",
        choices=SHORT_ANSWER_KINDS,
        default=(),
        metavar="KIND",
        help=f"ask half of the questions of these kinds: {', '.join(SHORT_ANSWER_KINDS)}",
    )
    return parser.parse_args(arguments)


def start(options: argparse.Namespace) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The model before training, on the device, and its processor."""
    torch.set_num_threads(1 if options.device == "cpu" else 4)
    torch.set_default_device(options.device)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(options.runs / "tokenizer")
    model = build_model(tokenizer, options.seed)
    words = model.get_input_embeddings()
    assert isinstance(words, nn.Embedding)
    start_words(words, tokenizer, codebook(words.embedding_dim).to(options.device))
    start_places(model)
    if options.start_from is not None:
        started = LlavaForConditionalGeneration.from_pretrained(options.start_from, dtype=torch.float32)
        model.load_state_dict(started.state_dict())
    if options.compile:
        for layer in (*model.model.vision_tower.encoder.layers, *model.model.language_model.layers):
            layer.compile(dynamic=False)
    return model, build_processor(tokenizer)


@torch.no_grad()
def start_places(model: LlavaForConditionalGeneration) -> None:
    """The tower's position embeddings start as waves down and across: random ones told places apart too late."""
    embedding = model.model.vision_tower.embeddings.position_embedding.weight
    place = (torch.arange(GRID_SIDE) + 0.5) / GRID_SIDE
    frequency = torch.logspace(0, 3, embedding.shape[1] // 4, base=2) * torch.pi
    waves = torch.cat([(place[:, None] * frequency).sin(), (place[:, None] * frequency).cos()], dim=1)
    down = waves[:, None].expand(GRID_SIDE, GRID_SIDE, -1)
    embedding[1:] = 0.5 * torch.cat([down, down.transpose(0, 1)], dim=-1).flatten(0, 1)


def train(number: int, options: argparse.Namespace, rendezvous: str) -> None:
    """One of `options.processes` equal processes; the first one prints and saves."""
    torch.distributed.init_process_group(
        "nccl" if options.device == "cuda" else "gloo",
        init_method=f"file://{rendezvous}",
        rank=number,
        world_size=options.processes,
    )
    model, processor = start(options)
    train_tower(model, options)
    curriculum = train_decoder(model, processor, options)
    train_answers(model, processor, curriculum, options)
    if number == 0:
        model.bfloat16().save_pretrained(options.out)
        processor.save_pretrained(options.out)
        print(f"saved to {options.out}")
    torch.distributed.destroy_process_group()


def main() -> None:
    options = parse()
    if options.processes is None:
        options.processes = 1 if options.device == "cuda" else os.cpu_count() or 1
    options.runs.mkdir(parents=True, exist_ok=True)
    if options.start_from is not None:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(options.start_from)
    else:
        tokenizer = cut(fetch_source_tokenizer(options.runs / "smollm2"), corpus())
    tokenizer.save_pretrained(options.runs / "tokenizer")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(train, (options, f"{folder}/rendezvous"), nprocs=options.processes)


if __name__ == "__main__":
    main()
