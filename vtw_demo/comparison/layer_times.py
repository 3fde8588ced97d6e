"""How long each decoder layer takes in a prefill, with and without withdrawal, in passes made for that alone."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from vtw_demo.comparison.compare import RunName
from vtw_demo.comparison.timing import Clock, in_turn
from vtw_demo.errors import UserError
from vtw_demo.withdrawal.architectures import find_decoder
from vtw_demo.withdrawal.withdraw import check_layer, withdraw


@dataclass(frozen=True)
class LayerTimes:
    """Milliseconds of each decoder layer in a prefill, medians over `rounds` passes of each run.

    A layer's time is that of the layer itself and of what withdrawal does around it: taking the kept tokens out of the
    sequence before layer K, `layer`, and their masks and positions before each layer from K on. What comes before the
    first layer (the vision encoder, the mask of the whole prompt, finding the visual tokens) is in no layer's time.

    On a GPU the device is waited for before and after each layer, so layers don't overlap as they do in a prefill that
    nobody watches: the times add up to more than that takes.
    """

    layer: int
    rounds: int
    full: tuple[float, ...]
    withdrawn: tuple[float, ...]


def measure_layer_times(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    layer: int,
    rounds: int = 5,
    stop: threading.Event | None = None,
) -> LayerTimes | None:
    """Time each decoder layer in prefills of `inputs`, full and withdrawn at `layer` (K) in turn.

    - `model`: a vision-language model that `withdraw` supports; it is left as it was.
    - `inputs`: what its processor made of a prompt, on the model's device.
    - `rounds`: passes of each run; one of each comes before them, to warm up.
    - `stop`: once set, no further pass begins, and the result is None.

    Each pass is a prefill as `generate` runs it: with a KV cache, and logits of the last position only.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int):
        raise UserError(f"The number of rounds must be a whole number; this is {rounds!r}.")
    layers = len(find_decoder(model).layers)
    check_layer(layer, layers)

    def prefill(withdrawal_layer: int) -> list[float] | None:
        if stop is not None and stop.is_set():
            return None
        with torch.inference_mode(), withdraw(model, withdrawal_layer), _timed_layers(model) as times:
            model(**inputs, use_cache=True, logits_to_keep=1)
        return times

    runs: dict[RunName, Any] = {"full": partial(prefill, layers), "withdrawn": partial(prefill, layer)}
    passes: dict[RunName, list[list[float]]] = {name: [] for name in runs}
    for name, times in in_turn(runs, rounds):
        if times is None:
            return None
        passes[name].append(times)
    full, withdrawn = (tuple(map(statistics.median, zip(*of_run, strict=True))) for of_run in passes.values())
    return LayerTimes(layer, rounds, full, withdrawn)


@contextmanager
def _timed_layers(model: PreTrainedModel) -> Iterator[list[float]]:
    """The milliseconds of each decoder layer in the forward pass that is made inside.

    Enter it inside `withdraw`, so that its hooks stand around those of the withdrawal.
    """
    layers, clock = find_decoder(model).layers, Clock(model.device)
    started, times = [0.0] * len(layers), [0.0] * len(layers)

    def start(index: int, *_: Any) -> None:
        started[index] = clock.now()

    def end(index: int, *_: Any) -> None:
        times[index] = (clock.now() - started[index]) * 1e3

    with ExitStack() as hooks:
        for index, layer in enumerate(layers):
            hooks.callback(layer.register_forward_pre_hook(partial(start, index), prepend=True).remove)
            hooks.callback(layer.register_forward_hook(partial(end, index)).remove)
        yield times
