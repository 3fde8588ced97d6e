"""Trains the embedded model: python -m vtw_demo.embedded.training tower | decoder | answers

`tower`: the vision tower and projector learn to write what is at each patch in a fixed code. `decoder`: layers of a
language model learn to answer from that code. The two need nothing of each other and run side by side, a core each.
`answers`: everything together learns to answer about pictures. No step of it withdraws, drops or masks a visual token
in any layer. Each part goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing
from torch import nn
from tqdm import tqdm
from transformers import LlamaModel, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

from vtw_demo.embedded.architecture import GRID_SIDE, TRAINED_LAYERS, build_model, build_processor
from vtw_demo.embedded.codes import CODES, code_loss, names_right, patch_contents
from vtw_demo.embedded.easy_vqa_data import easy_vqa_pictures
from vtw_demo.embedded.language_model import build_tokenizer, source_model, start_decoder, word_codebook
from vtw_demo.embedded.practice import (
    Curriculum,
    Pictures,
    Shares,
    mixed_pictures,
    practice_picture,
    practice_scene,
    scene_questions,
)
from vtw_demo.embedded.questions import SHORT_ANSWER_KINDS
from vtw_demo.embedded.samples import IGNORED, PackedSamples, pack, pixels
from vtw_demo.embedded.scenes import MAXIMUM_OBJECTS, Scene, random_scene
from vtw_demo.embedded.stage import Stage, processes, rank, save_checkpoint
from vtw_demo.embedded.tokenizer import fetch_source_tokenizer
from vtw_demo.embedded.unknown_pictures import photos

# The decoder's own part shows it the scene on a coarser grid, whose rows are shorter.
COARSE_SIDE = 7
# How unsure each code of the coded tokens is made: the tower's are never perfect.
CODE_NOISE = 0.1


@dataclass(frozen=True)
class Schedule:
    """How long a part is trained, and how fast."""

    steps: int
    cooldown: int
    rate: float


SCHEDULES = {
    "tower": Schedule(6000, 3000, 0.01),
    "decoder": Schedule(2000, 800, 0.01),
    "answers": Schedule(1500, 1500, 0.005),
}


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


def tower_scene(generator: random.Random) -> Scene:
    """Characters are small and rare: of the scenes without one, half are drawn anew."""
    scene = random_scene(generator, generator.randint(1, MAXIMUM_OBJECTS))
    if not any(item.character for item in scene.objects) and generator.random() < 0.5:
        scene = random_scene(generator, generator.randint(1, MAXIMUM_OBJECTS))
    return scene


def writing_part(model: LlavaForConditionalGeneration) -> nn.ModuleDict:
    """Tower and projector, which write the visual tokens."""
    return nn.ModuleDict({"tower": model.model.vision_tower, "projector": model.model.multi_modal_projector})


def train_tower(model: LlavaForConditionalGeneration, book: torch.Tensor, options: argparse.Namespace) -> None:
    """The tower and the projector learn to write what is at each patch, in codes."""
    checkpoint, writer = options.runs / "tower.pt", writing_part(model)
    stage = Stage(writer, options.rate, options.steps, options.cooldown, others_rate=0.12)
    if checkpoint.exists():
        stage.restore(torch.load(checkpoint, weights_only=True, map_location=options.device))
    with tqdm(total=options.steps, initial=stage.step, desc="tower", disable=rank() > 0) as bar:
        while stage.step < options.steps:
            generator = random.Random(f"{options.seed} tower {stage.step} {rank()}")
            scenes = [tower_scene(generator) for _ in range(options.batch // processes())]
            shown = pixels([practice_picture(scene, generator) for scene in scenes]).to(options.device)
            contents = patch_contents(scenes, GRID_SIDE).to(options.device)
            with stage.autocast:
                written = writer["projector"](writer["tower"](shown).last_hidden_state[:, 1:]).float()
            loss = code_loss(written, contents, book)
            stage.take_step(loss)
            right = names_right(written.detach(), contents, book)
            bar.set_postfix(loss=f"{loss.item():.3f}", **{name: f"{share:.3f}" for name, share in right.items()})
            bar.update()
            if stage.step % options.save_every == 0 or stage.step == options.steps:
                save_checkpoint(checkpoint, stage.state())


def train_decoder(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, book: torch.Tensor, options: argparse.Namespace
) -> None:
    """The decoder's trained layers learn to answer from the codes themselves, without the frozen ones above them."""
    checkpoint = options.runs / "decoder.pt"
    curriculum, shares = Curriculum(options.mastery, options.level), Shares(tuple(options.emphasis))
    decoder = model.model.language_model
    decoder.layers = decoder.layers[:TRAINED_LAYERS]
    stage = Stage(decoder, options.rate, options.steps, options.cooldown)
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=options.device)
        stage.restore(saved["training"])
        curriculum, shares.smooth = Curriculum(**saved["curriculum"]), saved["shares"]
    length = options.length - GRID_SIDE**2 + COARSE_SIDE**2
    with tqdm(total=options.steps, initial=stage.step, desc="decoder", disable=rank() > 0) as bar:
        while stage.step < options.steps:
            seed = f"{options.seed} decoder {stage.step} {rank()}"
            generator = random.Random(seed)
            noise = torch.Generator(options.device).manual_seed(zlib.crc32(seed.encode()))
            scenes = [practice_scene(generator, curriculum) for _ in range(options.batch // processes())]
            asked = [scene_questions(scene, options.turns, generator, shares.kinds()) for scene in scenes]
            samples = pack(processor, asked, length, COARSE_SIDE).to(options.device)
            weights = patch_contents(scenes, COARSE_SIDE).to(options.device).weights
            unsure = CODE_NOISE * torch.randn(weights.shape, generator=noise, device=options.device)
            visual = (samples.input_ids == processor.image_token_id)[..., None]
            words = model.get_input_embeddings()(samples.input_ids)
            embedded = words.masked_scatter(visual, (weights + unsure) @ book)
            with stage.autocast:
                hidden = decoder(
                    inputs_embeds=embedded,
                    position_ids=samples.position_ids,
                    attention_mask=samples.attention_mask(),
                    use_cache=False,
                ).last_hidden_state
            loss, right = answer_loss(model, samples, hidden)
            stage.take_step(loss)
            record(right, samples, list(scenes), curriculum, shares, stage.step)
            bar.set_postfix(loss=f"{loss.item():.3f}", level=curriculum.level, **shares.figures())
            bar.update()
            if stage.step % options.save_every == 0 or stage.step == options.steps:
                state = {"training": stage.state(), "curriculum": vars(curriculum), "shares": shares.smooth}
                save_checkpoint(checkpoint, state)


def train_answers(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, book: torch.Tensor, options: argparse.Namespace
) -> None:
    """Everything learns to answer about pictures; writing the code stays a tenth of the loss."""
    checkpoint = options.runs / "answers.pt"
    curriculum, shares = Curriculum(options.mastery, options.level), Shares(tuple(options.emphasis))
    others = Pictures(easy_vqa_pictures("train"), photos())
    stage = Stage(model, options.rate, options.steps, options.cooldown)
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=options.device)
        stage.restore(saved["training"])
        curriculum, shares.smooth = Curriculum(**saved["curriculum"]), saved["shares"]
    elif options.start_from is None:
        tower = torch.load(options.runs / "tower.pt", weights_only=True, map_location=options.device)
        writing_part(model).load_state_dict(tower["model"], strict=False)
        decoder = torch.load(options.runs / "decoder.pt", weights_only=True, map_location=options.device)
        model.model.language_model.load_state_dict(decoder["training"]["model"], strict=False)
        curriculum, shares.smooth = Curriculum(**decoder["curriculum"]), decoder["shares"]
    written: list[torch.Tensor] = []
    hook = model.model.multi_modal_projector.register_forward_hook(lambda *call: written.append(call[-1]))
    with tqdm(total=options.steps, initial=stage.step, desc="answers", disable=rank() > 0) as bar:
        while stage.step < options.steps:
            generator = random.Random(f"{options.seed} answers {stage.step} {rank()}")
            pictures, asked, scenes = mixed_pictures(
                others, curriculum, shares.kinds(), generator, options.batch // processes(), options.turns
            )
            samples = pack(processor, asked, options.length).to(options.device)
            written.clear()
            with stage.autocast:
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
                tokens = written[0].float().view(len(scenes), -1, book.shape[1])[drawn]
                loss = loss + 0.1 * code_loss(tokens, contents.to(options.device), book)
            stage.take_step(loss)
            record(right, samples, scenes, curriculum, shares, stage.step)
            bar.set_postfix(loss=f"{loss.item():.3f}", level=curriculum.level, **shares.figures())
            bar.update()
            if stage.step % options.save_every == 0 or stage.step == options.steps:
                state = {"training": stage.state(), "curriculum": vars(curriculum), "shares": shares.smooth}
                save_checkpoint(checkpoint, state)
    hook.remove()
    if rank() == 0:
        model.bfloat16().save_pretrained(options.out)
        processor.save_pretrained(options.out)
        print(f"saved to {options.out}")


def told(name: str) -> str:
    return ", ".join(f"{getattr(schedule, name)} for the {part}" for part, schedule in SCHEDULES.items())


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("part", choices=tuple(SCHEDULES), help="what is trained")
    parser.add_argument("--out", type=Path, default=Path("assets/embedded"), help="where the model is saved")
    parser.add_argument("--runs", type=Path, default=Path("runs/embedded"), help="checkpoints; a run goes on from them")
    parser.add_argument("--start-from", type=Path, help="a model saved earlier, for a start without checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, default=1, help="they share each step's pictures, a core or GPU each")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=shutil.which("g++") is not None,
        help="compile the layers, which takes a C++ compiler",
    )
    parser.add_argument("--steps", type=int, help=f"by default {told('steps')}")
    cooldown = "last steps, in which the learning rate falls to 0"
    parser.add_argument("--cooldown", type=int, help=f"{cooldown}; by default {told('cooldown')}")
    parser.add_argument("--rate", type=float, help=f"Muon's peak learning rate; by default {told('rate')}")
    parser.add_argument("--save-every", type=int, default=50, metavar="STEPS", help="steps between checkpoints")
    parser.add_argument("--batch", type=int, default=16, help="pictures a step")
    parser.add_argument("--turns", type=int, default=18, help="questions asked about a scene, as far as they fit")
    parser.add_argument("--length", type=int, default=448, help="positions a row")
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
    options = parser.parse_args(arguments)
    for name, value in asdict(SCHEDULES[options.part]).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def prepare(runs: Path) -> None:
    """The tokenizer and the language model's part of the weights, once for all parts, in `runs`."""
    if (runs / "start.pt").exists():
        return
    runs.mkdir(parents=True, exist_ok=True)
    source_tokenizer = fetch_source_tokenizer(runs / "smollm2")
    tokenizer = build_tokenizer(source_tokenizer)
    model = build_model(tokenizer, 0)
    start_decoder(model.model.language_model, source_model(runs / "smollm2"), tokenizer, source_tokenizer)
    book = word_codebook(model.model.language_model.embed_tokens.weight, tokenizer)
    tokenizer.save_pretrained(runs / "tokenizer")
    unfinished = runs / "start.unfinished"
    torch.save({"decoder": model.model.language_model.state_dict(), "book": book}, unfinished)
    unfinished.replace(runs / "start.pt")


def start(options: argparse.Namespace) -> tuple[LlavaForConditionalGeneration, LlavaProcessor, torch.Tensor]:
    """The model before training, on the device, its processor and the codes, (codes, width)."""
    torch.set_num_threads(1 if options.device == "cpu" else 4)
    torch.set_default_device(options.device)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(options.runs / "tokenizer")
    model = build_model(tokenizer, options.seed)
    started = torch.load(options.runs / "start.pt", weights_only=True, map_location=options.device)
    decoder, book = model.model.language_model, started["book"]
    decoder.load_state_dict(started["decoder"])
    start_places(model)
    if options.start_from is not None:
        start_from(model, LlavaForConditionalGeneration.from_pretrained(options.start_from, dtype=torch.float32))
    for kept in kept_as_they_were(decoder):
        kept.requires_grad_(False)
    if options.compile:
        for layer in (*model.model.vision_tower.encoder.layers, *decoder.layers):
            layer.compile(dynamic=False)
    assert book.shape[0] == CODES
    return model, build_processor(tokenizer), book


def kept_as_they_were(decoder: LlamaModel) -> tuple[nn.Module, ...]:
    """What of the language model isn't trained."""
    return (decoder.embed_tokens, decoder.norm, *decoder.layers[TRAINED_LAYERS:])


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


def train(number: int, options: argparse.Namespace, rendezvous: str) -> None:
    """One of `options.processes` equal processes; the first one prints and saves."""
    torch.distributed.init_process_group(
        "nccl" if options.device == "cuda" else "gloo",
        init_method=f"file://{rendezvous}",
        rank=number,
        world_size=options.processes,
    )
    model, processor, book = start(options)
    if options.part == "tower":
        train_tower(model, book, options)
    elif options.part == "decoder":
        train_decoder(model, processor, book, options)
    else:
        train_answers(model, processor, book, options)
    torch.distributed.destroy_process_group()


def main() -> None:
    options = parse()
    prepare(options.runs)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(train, (options, f"{folder}/rendezvous"), nprocs=options.processes)


if __name__ == "__main__":
    main()
