"""The training loop of every part, the same in each of several processes: optimizers, steps, checkpoints."""

import argparse
import random
from collections.abc import Callable, Mapping

import torch
import torch.distributed
from torch import nn
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters
from tqdm import tqdm

from vtw_demo.embedded.training.practice import Progress
from vtw_demo.models.devices import compute_dtype


class Trainer:
    """What of `model` is trained in `options.part`, its optimizers and progress: all that a checkpoint holds.

    It goes on from its checkpoint, if there is one. `others_rate` is AdamW's learning rate, for what is no matrix, as a
    share of Muon's.
    """

    def __init__(self, model: nn.Module, options: argparse.Namespace, others_rate: float = 0.05) -> None:
        self.options = options
        self.step, self.progress = 0, Progress(options.level)
        device = next(model.parameters()).device
        dtype = compute_dtype(device)
        self.autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        matrices = {name: p for name, p in self.trained.items() if p.ndim == 2 and "embed" not in name}
        others = [p for name, p in self.trained.items() if name not in matrices]
        # Muon makes a step's update orthogonal, which took a quarter of AdamW's steps; it is for matrices only.
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices.values(), lr=options.rate, weight_decay=0.0),
            torch.optim.AdamW(others, lr=options.rate * others_rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.checkpoint = options.runs / f"{options.part}.pt"
        if self.checkpoint.exists():
            saved = torch.load(self.checkpoint, weights_only=True, map_location=options.device)
            self.step, self.progress = saved["step"], Progress(**saved["progress"])
            model.load_state_dict(saved["model"], strict=False)
            for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)

    def run(self, practise: Callable[[random.Random], tuple[torch.Tensor, Mapping[str, float]]]) -> None:
        """All steps that are left. `practise` gives a step's loss, and figures to show; all that it draws at random
        depends on the seed, the step and the process."""
        options, rank = self.options, torch.distributed.get_rank()
        with tqdm(total=options.steps, initial=self.step, desc=options.part, disable=rank > 0) as bar:
            while self.step < options.steps:
                generator = random.Random(f"{options.seed} {options.part} {self.step} {rank}")
                torch.manual_seed(generator.getrandbits(63))
                loss, figures = practise(generator)
                self._take_step(loss)
                bar.set_postfix(loss=loss.item(), **figures)
                bar.update()
                if rank == 0 and (self.step % options.save_every == 0 or self.step == options.steps):
                    self._save()

    def record(self, answered: list[tuple[str, int, bool]]) -> dict[str, float]:
        """Progress, alike in all processes, after what each has `answered`; and its figures."""
        everywhere: list[list[tuple[str, int, bool]]] = [[]] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everywhere, answered)
        self.progress.record([answer for of_one in everywhere for answer in of_one], self.options.mastery)
        return {"level": self.progress.level, **self.progress.shares}

    def _take_step(self, loss: torch.Tensor) -> None:
        left = self.options.steps - self.step
        share = min(1.0, (self.step + 1) / 30, left / max(1, self.options.cooldown))
        loss.backward()
        # One exchange a step. Processes of one thread each wait less for each other than threads do.
        gradients = [p.grad for p in self.trained.values() if p.grad is not None]
        averaged = parameters_to_vector(gradients) / torch.distributed.get_world_size()
        torch.distributed.all_reduce(averaged)
        vector_to_parameters(averaged, gradients)
        clip_grad_norm_(self.trained.values(), 1.0)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"] * share
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1

    def _save(self) -> None:
        """Whole or not at all: a killed run leaves the last complete checkpoint."""
        unfinished = self.checkpoint.with_suffix(".unfinished")
        state = {
            "step": self.step,
            "progress": vars(self.progress),
            "model": {name: p.detach() for name, p in self.trained.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        torch.save(state, unfinished)
        unfinished.replace(self.checkpoint)
