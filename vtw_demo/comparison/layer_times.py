"""How long each decoder layer takes in a prefill, with and without withdrawal, in passes made for that alone."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from vtw_demo.comparison.compare import RunName
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

    Raises ValueError for lengths that differ, K outside 1 to their length, no round, and times that aren't positive.
    """

    layer: int
    rounds: int
    full: tuple[float, ...]
    withdrawn: tuple[float, ...]

    def __post_init__(self) -> None:
        layers = len(self.full)
        if layers != len(self.withdrawn):
            raise ValueError(f"full has {layers} layers, withdrawn has {len(self.withdrawn)}.")
        if not 1 <= self.layer <= layers:
            raise ValueError(f"layer must be from 1 to {layers}, the number of layers; this is {self.layer}.")
        if self.rounds < 1:
            raise ValueError(f"There is at least 1 round; this is {self.rounds}.")
        for milliseconds in (*self.full, *self.withdrawn):
            if not milliseconds > 0:
                raise ValueError(f"Every layer takes some time; this is {milliseconds} ms.")

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return asdict(self)


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

    Raises ValueError for rounds below 1, and what `withdraw` raises.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise UserError(f"The number of rounds must be at least 1; this is {rounds!r}.")
    layers = len(find_decoder(model).layers)
    check_layer(layer, layers)
    runs: dict[RunName, int] = {"full": layers, "withdrawn": layer}
    passes: dict[RunName, list[list[float]]] = {name: [] for name in runs}
    for _ in range(1 + rounds):
        for name, withdrawal_layer in runs.items():
            if stop is not None and stop.is_set():
                return None
            with torch.inference_mode(), withdraw(model, withdrawal_layer), _timed_layers(model) as times:
                model(**inputs, use_cache=True, logits_to_keep=1)
            passes[name].append(times)
    return LayerTimes(layer, rounds, _medians(passes["full"]), _medians(passes["withdrawn"]))


@contextmanager
def _timed_layers(model: PreTrainedModel) -> Iterator[list[float]]:
    """The milliseconds of each decoder layer in the forward pass that is made inside.

    Enter it inside `withdraw`, so that its hooks stand around those of the withdrawal.
    """
    layers = find_decoder(model).layers
    started, times = [0.0] * len(layers), [0.0] * len(layers)

    def now() -> float:
        if model.device.type != "cpu":
            torch.accelerator.synchronize(model.device)
        return time.perf_counter() * 1e3

    def start(index: int, *_: Any) -> None:
        started[index] = now()

    def end(index: int, *_: Any) -> None:
        times[index] = now() - started[index]

    with ExitStack() as hooks:
        for index, layer in enumerate(layers):
            hooks.callback(layer.register_forward_pre_hook(partial(start, index), prepend=True).remove)
            hooks.callback(layer.register_forward_hook(partial(end, index)).remove)
        yield times


def _medians(passes: list[list[float]]) -> tuple[float, ...]:
    """By layer, without the first pass, which warmed up."""
    return tuple(statistics.median(times) for times in zip(*passes[1:], strict=True))
