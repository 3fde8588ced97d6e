"""The training loop of every part: optimizer, steps, checkpoints."""

import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_
from transformers import LlavaForConditionalGeneration

from vtw_demo.embedded.training.four_bits import seen_in_four_bits
from vtw_demo.embedded.training.practice import Progress
from vtw_demo.models.devices import compute_dtype

# A question's kind, the number of objects in its scene, 0 without a scene, and how right the answer was, 0 to 1.
Answered = tuple[str, int, float]
# The loss of a step, and what was answered in it.
Practised = tuple[torch.Tensor, list[Answered]]
# Steps in which the learning rate rises, and between two lines of the log.
WARM_UP, LOGGED = 20, 5


class Trainer:
    """Trains those of `model`'s weights that require gradients, and goes on from the part's checkpoint, if there is
    one. `layers` are the decoder's, by their numbers in SmolLM2-135M."""

    def __init__(
        self, model: LlavaForConditionalGeneration, layers: Sequence[int], progress: Progress, options: Any
    ) -> None:
        self.model, self.layers, self.progress, self.options, self.step = model, list(layers), progress, options, 0
        device = next(model.parameters()).device
        dtype = compute_dtype(device)
        self.autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, options.rate, (0.9, 0.95), weight_decay=0.01, fused=True)
        self.checkpoint = options.runs / f"{options.part}.pt"
        if self.checkpoint.exists():
            saved = torch.load(self.checkpoint, weights_only=True, map_location=device)
            self.step, self.progress = saved["step"], Progress(**saved["progress"])
            model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])

    def run(self, practise: Callable[[random.Random], Practised]) -> None:
        """All steps that are left. All that `practise` draws at random depends on the seed and the step."""
        options = self.options
        logged = saved = time.monotonic()
        while self.step < options.steps:
            generator = random.Random(f"{options.seed} {options.part} {self.step}")
            torch.manual_seed(generator.getrandbits(63))
            as_stored = self.step >= options.steps - options.stored_steps
            with seen_in_four_bits(self.model) if as_stored else nullcontext():
                loss, answered = practise(generator)
                loss.backward()
            share = min((self.step + 1) / WARM_UP, (options.steps - self.step) / max(1, options.cooldown), 1.0)
            self.optimizer.param_groups[0]["lr"] = options.rate * share
            clip_grad_norm_(self.trained, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            self.progress.record(answered, options.mastery)
            if self.step % LOGGED == 0:
                seconds, logged = (time.monotonic() - logged) / LOGGED, time.monotonic()
                shares = " ".join(f"{kind} {share:.2f}" for kind, share in sorted(self.progress.shares.items()))
                level = self.progress.level
                print(f"step {self.step} {seconds:.1f} s each loss {loss:.3f} level {level} {shares}", flush=True)
            if time.monotonic() - saved > 60 * options.save_every:
                self._save()
                saved = time.monotonic()
        self._save()

    def _save(self) -> None:
        """Whole or not at all: a killed run leaves the last complete file."""
        state = {
            "step": self.step,
            "progress": vars(self.progress),
            "layers": self.layers,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        unfinished = self.checkpoint.with_suffix(".unfinished")
        torch.save(state, unfinished)
        unfinished.replace(self.checkpoint)
