"""One timed answer of a model: greedy decoding token by token, in step with whoever reads the tokens."""

import queue
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel, StoppingCriteriaList
from transformers.cache_utils import CacheLayerMixin

from vtw_demo.comparison.timing import Clock
from vtw_demo.measurements.equal_flops import schedule_of
from vtw_demo.measurements.flops import continued_flops, prefill_flops
from vtw_demo.models.devices import check_finite, start_on_model_thread
from vtw_demo.models.loading import VisionLanguageModel
from vtw_demo.models.prompt import Prompt
from vtw_demo.withdrawal.architectures import find_decoder
from vtw_demo.withdrawal.cache import find_cache
from vtw_demo.withdrawal.prune import pruned_by
from vtw_demo.withdrawal.withdraw import Automatic

LONG_ENCODING_MS = 1000.0


@dataclass(frozen=True)
class AnswerCost:
    """What the answers to a batch of prompts took; time in which the model waited for its reader isn't counted."""

    # From the start to the decoder: vision tower, projector, embedding; None where the picture was taken as an earlier
    # run had encoded it, or not at all, as by one that goes on with a KV cache.
    encode_ms: float | None
    prefill_ms: float  # from there to the first token
    decode_ms_per_token: float | None  # mean over the tokens after the first; None where there is none
    total_ms: float
    kv_cache_bytes: int  # measured from the cache at the end of the answer

    @property
    def after_encoding_ms(self) -> float:
        return self.total_ms - (self.encode_ms or 0.0)


@dataclass(frozen=True)
class Run(AnswerCost):
    answer: str
    tokens: tuple[int, ...]
    prefill_flops: int  # of the decoder, in closed form
    peak_memory_bytes: int | None = None  # the GPU's; None on a CPU, where torch doesn't count it
    chosen_layer: int | None = None  # K where the prefill chose it


def timed_generate(
    generate: Callable[..., Any],
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    context: AbstractContextManager[None],
    on_tokens: Callable[[torch.Tensor], bool] = lambda tokens: False,
    names: Sequence[str] = (),
    **options: Any,
) -> AnswerCost:
    """Let `generate`, of `model` or of what wraps it, answer a batch of prompts inside `context`, and time its stages.

    - `on_tokens`: called with each position's new tokens, int64, shape (batch,), in time that isn't counted; True ends
      the answers.
    - `names`: of the prompts, to be said where `check_finite` raises.
    """
    clock = Clock(model.device)
    decoder_starts: list[float] = []
    token_times: list[float] = []
    latest: list[torch.Tensor] = []

    def before_decoder(*_: Any) -> None:
        if not decoder_starts:
            decoder_starts.append(clock.now())

    def after_forward(module: Any, args: tuple, output: Any) -> None:
        latest[:] = [output.logits[:, -1]]

    def after_token(input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        token_times.append(clock.now())
        with clock.paused():
            check_finite(latest[0], names)
            ended = on_tokens(input_ids[:, -1])
        return torch.full((len(input_ids),), ended, device=input_ids.device)

    with ExitStack() as hooks:
        hooks.callback(find_decoder(model).register_forward_pre_hook(before_decoder).remove)
        hooks.callback(model.register_forward_hook(after_forward).remove)
        with torch.inference_mode(), context:
            decoder_starts.clear()  # the context may have filled a cache
            start = clock.now()
            stopping = StoppingCriteriaList([after_token])
            output = generate(**inputs, **options, stopping_criteria=stopping, return_dict_in_generate=True)
    decoder, first, last, count = decoder_starts[0], token_times[0], token_times[-1], len(token_times)
    # A layer that uses another's keys and values may hold none.
    cache = find_cache(output)
    layers = [] if cache is None else [layer for layer in cache.layers if isinstance(layer, CacheLayerMixin)]
    return AnswerCost(
        encode_ms=(decoder - start) * 1e3,
        prefill_ms=(first - decoder) * 1e3,
        decode_ms_per_token=(last - first) * 1e3 / (count - 1) if count > 1 else None,
        total_ms=(last - start) * 1e3,
        kv_cache_bytes=sum(part.nbytes for layer in layers for part in (layer.keys, layer.values) if part is not None),
    )


def run_timed(
    vlm: VisionLanguageModel,
    prompt: Prompt,
    pruned: int | Automatic | str,
    max_new_tokens: int,
    stop: threading.Event,
    encoded_before: bool = False,
) -> Generator[tuple[int, ...] | Run, None, None]:
    """Decode greedily, the visual tokens withdrawn at the layer `pruned`, at the one that the prefill chooses where it
    is "auto", or pruned by the recipe that it is; yield the tokens so far after each new one, and at the end the `Run`,
    unless `stop` was set. The model waits while its reader handles a token, and that time is not counted. Closing the
    generator ends the run within a token.

    Where a run took longer than `LONG_ENCODING_MS` to encode the picture, the prompt keeps what it was encoded to. With
    `encoded_before` the run takes it from there, if it is there. Where the prompt says that positions are held, the KV
    cache that holds them is filled first, in time that isn't counted.
    """
    going_on = prompt.further_inputs
    inputs = going_on if prompt.held else prompt.encoded_inputs if encoded_before else prompt.inputs
    encoded: list[Any] = []
    new_tokens: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    ready, left = threading.Semaphore(0), threading.Event()
    on_gpu = vlm.device.type == "cuda"
    is_recipe = isinstance(pruned, str) and pruned != "auto"

    def hand_over(tokens: torch.Tensor) -> bool:
        if not left.is_set():
            new_tokens.put(int(tokens[0]))
            ready.acquire()
        return stop.is_set() or left.is_set()

    def note_encoded(thread: int, module: Any, args: tuple, given: dict[str, Any]) -> None:
        # transformers encodes pictures before the first forward pass, and hands it what came of them.
        if not encoded and threading.get_ident() == thread:
            encoded.append(given.get("mm_encoder_outputs"))

    def answer() -> tuple[AnswerCost, int | None, int | None]:
        note = partial(note_encoded, threading.get_ident())
        handle = vlm.model.register_forward_pre_hook(note, with_kwargs=True)
        try:
            if on_gpu:
                torch.cuda.reset_peak_memory_stats(vlm.device)
            with pruned_by(vlm.model, pruned) as pruning:
                if prompt.held:
                    going_on["past_key_values"] = held_cache(vlm, prompt)
                how: dict[str, Any] = {"on_tokens": hand_over, "max_new_tokens": max_new_tokens}
                cost = timed_generate(vlm.generate, vlm.model, inputs, nullcontext(), **how)
            if inputs is not prompt.inputs:
                cost = replace(cost, encode_ms=None)
            elif encoded[0] and (cost.encode_ms or 0.0) > LONG_ENCODING_MS:
                prompt.keep_encoded(encoded[0])
            return cost, torch.cuda.max_memory_allocated(vlm.device) if on_gpu else None, pruning.layer
        finally:
            handle.remove()
            new_tokens.put(None)

    answering = start_on_model_thread(answer)
    tokens: tuple[int, ...] = ()
    try:
        while (token := new_tokens.get()) is not None:
            tokens = (*tokens, token)
            yield tokens
            ready.release()
    finally:
        left.set()
        ready.release()
        wait([answering])
    cost, peak, layer = answering.result()
    if not stop.is_set():
        at: Any = schedule_of(str(pruned)) if is_recipe else layer
        of_prompt = vlm.model.config, prompt.length, prompt.visual_tokens
        yield Run(
            answer=vlm.decode(tokens),
            tokens=tokens,
            **asdict(cost),
            prefill_flops=continued_flops(*of_prompt, at, prompt.held)
            if prompt.held
            else prefill_flops(*of_prompt, at),
            peak_memory_bytes=peak,
            chosen_layer=layer if pruned == "auto" else None,
        )


def held_cache(vlm: VisionLanguageModel, prompt: Prompt) -> Any:
    """A KV cache of what the prompt says is held."""
    with torch.inference_mode():
        return find_cache(vlm.model(**prompt.held_inputs, use_cache=True, logits_to_keep=1))
