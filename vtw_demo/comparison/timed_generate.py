"""One timed run of a model: greedy decoding token by token, in step with whoever reads the tokens."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import CacheLayerMixin
from transformers.generation.streamers import BaseStreamer

from vtw_demo.measurements.flops import prefill_flops
from vtw_demo.models.devices import start_on_model_thread
from vtw_demo.models.loading import VisionLanguageModel
from vtw_demo.models.prompt import Prompt
from vtw_demo.withdrawal.architectures import find_decoder
from vtw_demo.withdrawal.withdraw import withdraw


@dataclass(frozen=True)
class Run:
    """One answer and what it cost.

    - `encode_ms`: from the start to the decoder: vision tower, projector, embedding.
    - `prefill_ms`: from there to the first token.
    - `decode_ms_per_token`: mean over the tokens after the first; None where there is none.
    - `total_ms`: all of it; time in which the run waited for its reader is in none of these.
    - `prefill_flops`: of the decoder, in closed form (`vtw_demo.measurements.flops`).
    - `kv_cache_bytes`: measured from the cache at the end of the answer.
    - `peak_memory_bytes`: the GPU's; None on a CPU, where torch doesn't count it.

    Raises ValueError for a run without a token, negative times, and FLOPs or bytes below 1.
    """

    answer: str
    tokens: tuple[int, ...]
    encode_ms: float
    prefill_ms: float
    decode_ms_per_token: float | None
    total_ms: float
    prefill_flops: int
    kv_cache_bytes: int
    peak_memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if not self.tokens:
            raise ValueError("A run has at least one token; this one has none.")
        if min(self.encode_ms, self.prefill_ms, self.decode_ms_per_token or 0.0, self.total_ms) < 0:
            raise ValueError("Times can't be negative.")
        if self.prefill_flops < 1 or self.kv_cache_bytes < 1:
            raise ValueError("FLOPs and bytes must be positive.")


def run_timed(
    vlm: VisionLanguageModel,
    prompt: Prompt,
    layer: int,
    max_new_tokens: int,
    stop: threading.Event,
) -> Generator[tuple[int, ...], None, Run | None]:
    """Decode greedily with the visual tokens withdrawn at `layer`; yield the tokens so far after each new one.

    The generator's return value is the `Run`, or None if `stop` was set before its end. The model waits while
    its reader handles a token, and that time is not counted. Closing the generator ends the run within a token.
    """
    clock = _Clock(vlm.device)
    streamer = _LockStepStreamer(clock)
    left = threading.Event()
    outcome: dict[str, Any] = {}

    def generate() -> None:
        try:
            with torch.inference_mode(), withdraw(vlm.model, layer), _decoder_start(vlm, clock):
                clock.start()
                outcome["cache"] = vlm.generate(
                    **prompt.inputs,
                    max_new_tokens=max_new_tokens,
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([_AnyIsSet(stop, left)]),
                    return_dict_in_generate=True,
                ).past_key_values
        except BaseException as error:  # handed to the reader's thread below
            outcome["error"] = error
        finally:
            streamer.end_run()

    run = start_on_model_thread(generate)
    tokens: tuple[int, ...] = ()
    try:
        for token in streamer.tokens():
            tokens = (*tokens, token)
            yield tokens
    finally:
        left.set()
        streamer.abandon()
        wait([run])
    if "error" in outcome:
        raise outcome["error"]
    if stop.is_set():
        return None
    return clock.run(vlm, prompt, layer, tokens, outcome["cache"])


class _Clock:
    """Times of one run, in seconds, the device synchronised at each mark; a pause is cut out."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[float] = []
        self.decoder_mark: float | None = None
        self.paused = 0.0

    def _now(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter() - self.paused

    def start(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.marks = [self._now()]

    def mark_decoder(self) -> None:
        if self.decoder_mark is None:
            self.decoder_mark = self._now()

    def mark_token(self) -> None:
        self.marks.append(self._now())

    def run(
        self,
        vlm: VisionLanguageModel,
        prompt: Prompt,
        layer: int,
        tokens: tuple[int, ...],
        cache: Cache,
    ) -> Run:
        start, first, last = self.marks[0], self.marks[1], self.marks[len(tokens)]
        decoder = start if self.decoder_mark is None else self.decoder_mark
        layers = [kept for kept in cache.layers if isinstance(kept, CacheLayerMixin)]
        held = [part for kept in layers for part in (kept.keys, kept.values)]
        flops = prefill_flops(vlm.model.config, prompt.length, prompt.visual_tokens, layer)
        return Run(
            answer=vlm.decode(tokens),
            tokens=tokens,
            encode_ms=(decoder - start) * 1e3,
            prefill_ms=(first - decoder) * 1e3,
            decode_ms_per_token=(last - first) * 1e3 / (len(tokens) - 1) if len(tokens) > 1 else None,
            total_ms=(last - start) * 1e3,
            prefill_flops=flops,
            kv_cache_bytes=sum(part.nbytes for part in held if part is not None),
            peak_memory_bytes=(torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None),
        )


@contextmanager
def _decoder_start(vlm: VisionLanguageModel, clock: _Clock) -> Iterator[None]:
    """Marks when the decoder is first called, which is when the picture has been encoded."""
    hook = find_decoder(vlm.model).register_forward_pre_hook(lambda *_: clock.mark_decoder())
    try:
        yield
    finally:
        hook.remove()


class _LockStepStreamer(BaseStreamer):
    """Hands over each new token, then holds the run until its reader is ready for the next one."""

    def __init__(self, clock: _Clock) -> None:
        self.clock = clock
        self.is_prompt = True
        self.queue: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self.ready = threading.Semaphore(0)
        self.abandoned = False

    def put(self, value: torch.Tensor) -> None:
        if self.is_prompt:  # generate streams the prompt first
            self.is_prompt = False
            return
        if self.abandoned:
            return
        self.clock.mark_token()
        waiting_since = time.perf_counter()
        self.queue.put(int(value.reshape(-1)[0]))
        self.ready.acquire()
        self.clock.paused += time.perf_counter() - waiting_since

    def end(self) -> None:
        """generate's own sign of the end; `end_run` comes after it, and after an exception too."""

    def end_run(self) -> None:
        self.queue.put(None)

    def abandon(self) -> None:
        """Nobody reads on: the run isn't held any more."""
        self.abandoned = True
        self.ready.release()

    def tokens(self) -> Iterator[int]:
        while (token := self.queue.get()) is not None:
            yield token
            self.ready.release()


class _AnyIsSet(StoppingCriteria):
    def __init__(self, *events: threading.Event) -> None:
        self.events = events

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        stopped = any(event.is_set() for event in self.events)
        return torch.full((len(input_ids),), stopped, device=input_ids.device)
