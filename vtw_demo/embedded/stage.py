"""One stage of training, the same in each of several processes: optimizers, steps, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import nn

from vtw_demo.embedded.muon import Muon
from vtw_demo.models.devices import compute_dtype


class Stage:
    """One training stage's model, optimizers and state, which a checkpoint holds whole; frozen weights are left out.

    `others_rate` is AdamW's learning rate, for what is no matrix, as a share of Muon's.
    """

    def __init__(
        self, model: nn.Module, peak_rate: float, steps: int, cooldown: int, others_rate: float = 0.05
    ) -> None:
        self.model, self.steps, self.cooldown = model, steps, cooldown
        device = next(model.parameters()).device
        dtype = compute_dtype(device)
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        matrices = [p for name, p in named if p.ndim >= 2 and "embed" not in name]
        others = [p for name, p in named if p.ndim < 2 or "embed" in name]
        # Muon makes a step's update orthogonal, which took a quarter of AdamW's steps; it is for matrices only.
        self.autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, peak_rate, dtype),
            torch.optim.AdamW(others, lr=peak_rate * others_rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.peaks = (peak_rate, peak_rate * others_rate)
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
        return {"step": self.step, "model": trained_weights(self.model), "optimizers": optimizers}

    def restore(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.model.load_state_dict(state["model"], strict=False)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def trained_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def average_gradients(model: nn.Module) -> None:
    """One exchange a step. Processes of one thread each wait less for each other than threads do."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients]) / torch.distributed.get_world_size()
    torch.distributed.all_reduce(flat)
    for gradient, averaged in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(averaged.view_as(gradient))


def processes() -> int:
    return torch.distributed.get_world_size()


def rank() -> int:
    return torch.distributed.get_rank()


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Written whole or not at all: a killed run leaves the last complete checkpoint."""
    if rank() > 0:
        return
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    unfinished.replace(path)
