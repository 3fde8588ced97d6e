"""The training loop of every part, the same in each of several processes: optimizers, steps, checkpoints."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed
from torch import nn
from tqdm import tqdm

from vtw_demo.embedded.training.muon import Muon
from vtw_demo.embedded.training.practice import Progress
from vtw_demo.models.devices import compute_dtype


class Trainer:
    """What is trained in `options.part`, its optimizers and progress, which a checkpoint holds whole.

    Frozen weights are left out. `others_rate` is AdamW's learning rate, for what is no matrix, as a share of Muon's.
    """

    def __init__(
        self,
        model: nn.Module,
        options: argparse.Namespace,
        progress: Progress | None = None,
        others_rate: float = 0.05,
    ) -> None:
        self.model, self.options, self.progress = model, options, progress
        self.checkpoint = options.runs / f"{options.part}.pt"
        self.step = 0
        device = next(model.parameters()).device
        dtype = compute_dtype(device)
        self.autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        matrices = [p for name, p in named if p.ndim >= 2 and "embed" not in name]
        others = [p for name, p in named if p.ndim < 2 or "embed" in name]
        # Muon makes a step's update orthogonal, which took a quarter of AdamW's steps; it is for matrices only.
        self.peak_rates = (options.rate, options.rate * others_rate)
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, self.peak_rates[0], dtype),
            torch.optim.AdamW(others, lr=self.peak_rates[1], betas=(0.9, 0.98), weight_decay=0.0),
        ]

    def run(self, practise: Callable[[str], tuple[torch.Tensor, dict[str, Any]]]) -> None:
        """All steps that are left. `practise` gives a step's loss, and figures to show, for its and the rank's seed."""
        options, rank = self.options, torch.distributed.get_rank()
        with tqdm(total=options.steps, initial=self.step, desc=options.part, disable=rank > 0) as bar:
            while self.step < options.steps:
                loss, figures = practise(f"{options.seed} {options.part} {self.step} {rank}")
                self._take_step(loss)
                bar.set_postfix(loss=f"{loss.item():.3f}", **figures)
                bar.update()
                if rank == 0 and (self.step % options.save_every == 0 or self.step == options.steps):
                    self._save()

    def _take_step(self, loss: torch.Tensor) -> None:
        left = self.options.steps - self.step
        share = min(1.0, (self.step + 1) / 30, left / max(1, self.options.cooldown))
        for optimizer, peak in zip(self.optimizers, self.peak_rates, strict=True):
            optimizer.param_groups[0]["lr"] = peak * share
        loss.backward()
        average_gradients(self.model)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1

    def _save(self) -> None:
        """Whole or not at all: a killed run leaves the last complete checkpoint."""
        state: dict[str, Any] = {
            "step": self.step,
            "model": {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        if self.progress is not None:
            state = {"training": state, **self.progress.state()}
        unfinished = self.checkpoint.with_suffix(".unfinished")
        torch.save(state, unfinished)
        unfinished.replace(self.checkpoint)

    def restore(self) -> bool:
        """Go on from the checkpoint, if there is one."""
        if not self.checkpoint.exists():
            return False
        state = torch.load(self.checkpoint, weights_only=True, map_location=self.options.device)
        if self.progress is not None:
            self.progress.restore(state)
            state = state["training"]
        self.step = state["step"]
        self.model.load_state_dict(state["model"], strict=False)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return True


def average_gradients(model: nn.Module) -> None:
    """One exchange a step. Processes of one thread each wait less for each other than threads do."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients]) / torch.distributed.get_world_size()
    torch.distributed.all_reduce(flat)
    for gradient, averaged in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(averaged.view_as(gradient))
