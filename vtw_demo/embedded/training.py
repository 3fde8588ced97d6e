"""Trains the embedded model, from nothing, in one command: python -m vtw_demo.embedded.training

First the tower learns to name what is at each patch, then everything learns to answer. No step of it withdraws,
drops or masks a visual token in any layer.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing
from torch import nn
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

from vtw_demo.embedded.architecture import build_model, build_processor
from vtw_demo.embedded.easy_vqa_data import PicturedQuestions, easy_vqa_pictures
from vtw_demo.embedded.questions import SHORT_ANSWER_KINDS, ask_several
from vtw_demo.embedded.samples import (
    IGNORED,
    PATCH_CLASSES,
    PackedSamples,
    pack,
    patch_labels,
    patch_words,
    pixels,
    shuffled,
)
from vtw_demo.embedded.scenes import MAXIMUM_OBJECTS, Scene, draw, random_scene
from vtw_demo.embedded.tokenizer import corpus, cut, fetch_source_tokenizer


@dataclass
class Curriculum:
    """More objects a scene once those before are mastered: `mastery` of the newest level's answers right."""

    mastery: float
    level: int = 1
    right: float = 0.0
    history: list[tuple[int, int]] = field(default_factory=list)

    def objects(self, generator: random.Random) -> int:
        return self.level if generator.random() < 0.5 else generator.randint(1, self.level)

    def record(self, step: int, right: float) -> None:
        self.right += 0.05 * (right - self.right)
        if self.right > self.mastery and self.level < MAXIMUM_OBJECTS:
            self.history.append((step, self.level))
            self.level, self.right = self.level + 1, 0.0


class Training:
    """One training stage's model, optimizers and state, which a checkpoint holds whole."""

    def __init__(self, model: nn.Module, peak_rate: float, steps: int, cooldown: int) -> None:
        self.model, self.steps, self.cooldown = model, steps, cooldown
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in named if p.ndim != 2 or "embed" in name]
        # Muon makes a step's update orthogonal, which took a quarter of AdamW's steps; it is for matrices only.
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=peak_rate, weight_decay=0.0),
            torch.optim.AdamW(others, lr=peak_rate / 20, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.peaks = (peak_rate, peak_rate / 20)
        self.step = 0

    def take_step(self, loss: torch.Tensor) -> None:
        share = min(1.0, (self.step + 1) / 30, (self.steps - self.step) / max(1, self.cooldown))
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * share
        loss.backward()
        average_gradients(self.model)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1

    def state(self) -> dict[str, Any]:
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        return {"step": self.step, "model": self.model.state_dict(), "optimizers": optimizers}

    def restore(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def average_gradients(model: nn.Module) -> None:
    """One exchange a step. Processes of one thread each wait less for each other than threads do."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients]) / torch.distributed.get_world_size()
    torch.distributed.all_reduce(flat)
    for gradient, averaged in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(averaged.view_as(gradient))


def is_first() -> bool:
    return torch.distributed.get_rank() == 0


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Written whole or not at all: a killed run leaves the last complete checkpoint."""
    if not is_first():
        return
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    unfinished.replace(path)


class PatchNamer(nn.Module):
    """The tower with one linear head for each property; the heads don't ship."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.tower = model.model.vision_tower
        width = self.tower.config.hidden_size
        self.heads = nn.ModuleDict({name: nn.Linear(width, 1 + len(c)) for name, c in PATCH_CLASSES.items()})

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.name(self.tower(pixel_values).last_hidden_state)

    def name(self, states: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits of each property at each patch, from the tower's states (batch, 1 + patches, width)."""
        patches = nn.functional.layer_norm(states[:, 1:], states.shape[-1:])
        return {name: head(patches) for name, head in self.heads.items()}


class Learner(nn.Module):
    """What the second stage trains: the whole model, and still the patches' names."""

    def __init__(self, model: LlavaForConditionalGeneration, namer: PatchNamer) -> None:
        super().__init__()
        self.model, self.namer = model, namer


def on_device(labels: dict[str, torch.Tensor], device: torch.device | str) -> dict[str, torch.Tensor]:
    return {name: values.to(device) for name, values in labels.items()}


def patch_loss(named: dict[str, torch.Tensor], labels: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross entropy of the names at all patches; empty ones are many and easy, and count a tenth."""
    weight = torch.where(labels["shape"] > 0, 1.0, 0.1)
    total = torch.zeros(())
    for name, logits in named.items():
        each = nn.functional.cross_entropy(logits.flatten(0, 1), labels[name].flatten(), reduction="none")
        total = total + (each * weight.flatten()).sum() / weight.sum()
    return total


@torch.no_grad()
def start_projector(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    """The projector's second layer in closed form: ridge regression of its first layer's output onto the sum of
    the decoder's own word embeddings for what is at each patch. So the decoder need not learn a new language."""
    generator = random.Random(f"{seed} projector")
    scenes = [random_scene(generator, generator.randint(1, MAXIMUM_OBJECTS)) for _ in range(48)]
    projector = model.model.multi_modal_projector
    shown = pixels([draw(scene) for scene in scenes]).to(model.device)
    states = model.model.vision_tower(shown).last_hidden_state[:, 1:]
    hidden = projector.act(projector.linear_1(states)).flatten(0, 1).double()
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    targets = (patch_words(scenes, tokenizer).to(model.device) @ embeddings.weight).flatten(0, 1).double()
    hidden = torch.cat([hidden, torch.ones(len(hidden), 1)], dim=1)
    ridge = 1e-3 * hidden.pow(2).mean() * len(hidden) * torch.eye(hidden.shape[1], dtype=torch.double)
    solution = torch.linalg.solve(hidden.T @ hidden + ridge, hidden.T @ targets)
    projector.linear_2.weight.copy_(solution[:-1].T)
    projector.linear_2.bias.copy_(solution[-1])


def train_tower(namer: PatchNamer, options: argparse.Namespace) -> None:
    checkpoint = options.runs / "tower.pt"
    training = Training(namer, peak_rate=0.02, steps=options.tower_steps, cooldown=options.tower_steps // 3)
    if checkpoint.exists():
        training.restore(torch.load(checkpoint, weights_only=True, map_location=options.device))
    with tqdm(total=options.tower_steps, initial=training.step, desc="tower", disable=not is_first()) as bar:
        while training.step < options.tower_steps:
            generator = random.Random(f"{options.seed} tower {training.step} {torch.distributed.get_rank()}")
            scenes = [
                random_scene(generator, generator.randint(1, MAXIMUM_OBJECTS))
                for _ in range(options.tower_batch // torch.distributed.get_world_size())
            ]
            named = namer(pixels([draw(scene) for scene in scenes]).to(options.device))
            labels = on_device(patch_labels(scenes), options.device)
            loss = patch_loss(named, labels)
            right = {}
            for name, logits in named.items():
                asked = labels["character" if name == "character" else "shape"] > 0
                right[name] = f"{(logits.argmax(-1) == labels[name])[asked].float().mean():.2f}"
            training.take_step(loss)
            bar.set_postfix(loss=f"{loss.item():.3f}", **right)
            bar.update()
            if training.step % 100 == 0 or training.step == options.tower_steps:
                save_checkpoint(checkpoint, training.state())


def mixed_samples(
    processor: LlavaProcessor,
    pictured: list[PicturedQuestions],
    curriculum: Curriculum,
    generator: random.Random,
    options: argparse.Namespace,
) -> tuple[PackedSamples, list[Scene | None]]:
    """A batch of fresh scenes and, a quarter of it, pictures of easy-vqa; and each row's scene, None for easy-vqa."""
    pictures, asked, scenes = [], [], []
    for _ in range(options.batch // torch.distributed.get_world_size()):
        scene = None
        if generator.random() < 0.25:
            chosen = generator.choice(pictured)
            pictures.append(chosen.picture())
            asked.append(shuffled(generator, chosen.questions))
        else:
            scene = random_scene(generator, curriculum.objects(generator))
            pictures.append(draw(scene))
            questions = ask_several(scene, options.turns, generator, SHORT_ANSWER_KINDS)
            if generator.random() < 0.4:
                questions[generator.randrange(4)] = ask_several(scene, 1, generator, ("description",))[0]
            asked.append([(q.kind, q.text, q.answer) for q in questions])
        scenes.append(scene)
    return pack(processor, pictures, asked, options.length), scenes


def answer_loss(
    learner: Learner, samples: PackedSamples, scenes: list[Scene | None]
) -> tuple[torch.Tensor, list[list[bool]]]:
    """The loss on the answers' tokens and on the patches' names, and for each row which turns were right in every
    token (teacher-forced)."""
    model, towers = learner.model, []
    hook = model.model.vision_tower.register_forward_hook(lambda *call: towers.append(call[-1].last_hidden_state))
    try:
        hidden = model.model(
            input_ids=samples.input_ids,
            pixel_values=samples.pixel_values,
            position_ids=samples.position_ids,
            attention_mask=samples.attention_mask(),
            use_cache=False,
        ).last_hidden_state
    finally:
        hook.remove()
    drawn = [row for row, scene in enumerate(scenes) if scene is not None]
    naming = torch.zeros(())
    if drawn:
        there = on_device(patch_labels([scene for scene in scenes if scene is not None]), model.device)
        naming = patch_loss(learner.namer.name(towers[0][drawn]), there)
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
    return loss + 0.1 * naming, right


def train_answers(learner: Learner, processor: LlavaProcessor, options: argparse.Namespace) -> None:
    checkpoint = options.runs / "answers.pt"
    pictured = easy_vqa_pictures("train")
    curriculum = Curriculum(options.mastery, options.level)
    training = Training(learner, peak_rate=options.rate, steps=options.steps, cooldown=options.cooldown)
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=options.device)
        training.restore(saved["training"])
        curriculum = Curriculum(**saved["curriculum"])
    smooth: dict[str, float] = {}
    with tqdm(total=options.steps, initial=training.step, desc="answers", disable=not is_first()) as bar:
        while training.step < options.steps:
            generator = random.Random(f"{options.seed} answers {training.step} {torch.distributed.get_rank()}")
            samples, scenes = mixed_samples(processor, pictured, curriculum, generator, options)
            loss, right = answer_loss(learner, samples.to(options.device), scenes)
            training.take_step(loss)
            newest: list[bool] = []
            for row_right, kinds, scene in zip(right, samples.kinds, scenes, strict=True):
                for is_right, kind in zip(row_right, kinds, strict=True):
                    smooth[kind] = smooth.get(kind, 0.0) + 0.01 * (is_right - smooth.get(kind, 0.0))
                    if scene is not None and len(scene.objects) == curriculum.level and kind != "description":
                        newest.append(is_right)
            counts = torch.tensor([float(sum(newest)), float(len(newest))])
            torch.distributed.all_reduce(counts)
            if counts[1] > 0:
                curriculum.record(training.step, (counts[0] / counts[1]).item())
            figures = {kind: f"{share:.2f}" for kind, share in sorted(smooth.items())}
            bar.set_postfix(loss=f"{loss.item():.3f}", level=curriculum.level, **figures)
            bar.update()
            if training.step % 50 == 0 or training.step == options.steps:
                save_checkpoint(checkpoint, {"training": training.state(), "curriculum": vars(curriculum)})


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("assets/embedded"), help="where the model is saved")
    parser.add_argument("--runs", type=Path, default=Path("runs/embedded"), help="checkpoints; a run goes on from them")
    parser.add_argument("--start-from", type=Path, help="a model saved earlier; otherwise all weights are fresh")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, help="they share each step's pictures; by default one a core or GPU")
    parser.add_argument("--tower-steps", type=int, default=500)
    parser.add_argument("--tower-batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=700, help="steps of the second stage")
    parser.add_argument("--cooldown", type=int, default=200, help="last steps, in which the learning rate falls to 0")
    parser.add_argument("--batch", type=int, default=32, help="pictures a step")
    parser.add_argument("--turns", type=int, default=18, help="questions asked about a scene, as far as they fit")
    parser.add_argument("--length", type=int, default=384, help="positions a row")
    parser.add_argument("--rate", type=float, default=0.012, help="Muon's peak learning rate; AdamW's is a twentieth")
    parser.add_argument("--level", type=int, default=1, help="objects in the first scenes")
    parser.add_argument("--mastery", type=float, default=0.8, help="share right before scenes get one object more")
    return parser.parse_args(arguments)


def train(rank: int, options: argparse.Namespace, rendezvous: str) -> None:
    """One of `options.processes` equal processes; the first one prints and saves."""
    torch.set_num_threads(1)
    torch.set_default_device(options.device)
    torch.distributed.init_process_group(
        "nccl" if options.device == "cuda" else "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=options.processes,
    )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(options.runs / "tokenizer")
    model, processor = build_model(tokenizer, options.seed), build_processor(tokenizer)
    if options.start_from is not None:
        started = LlavaForConditionalGeneration.from_pretrained(options.start_from, dtype=torch.float32)
        model.load_state_dict(started.state_dict())
    namer = PatchNamer(model)
    if options.tower_steps:
        train_tower(namer, options)
        start_projector(model, tokenizer, options.seed)
    train_answers(Learner(model, namer), processor, options)
    if is_first():
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
