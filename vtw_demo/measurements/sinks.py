"""Attention sinks: tokens with massive activations in a few dimensions of their hidden state."""

import math
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from vtw_demo.withdrawal.architectures import find_decoder
from vtw_demo.withdrawal.layer_inputs import named_arguments

MASSIVE = 20.0  # times the root mean square of its hidden state: the tau of arXiv 2503.03321, section 3


@dataclass(frozen=True)
class Sinks:
    """Which tokens are attention sinks as they enter each decoder layer (arXiv 2503.03321, "See What You Are Told").

    There a token is a sink if max |x_d| / rms(x) over a model's sink dimensions d is at least 20, x being its hidden
    state. The paper takes these dimensions from the language model (1415 and 2533 in LLaMA-2 7B); here each layer's
    are those in which the prompt's first token, the known sink, has such an activation. Where it has none, no visual
    token is called a sink. The ratio is at most the root of the hidden size: under 400, no token can be one.
    """

    dimensions: tuple[tuple[int, ...], ...]  # (layers, any number): in which the first token is massive
    visual: tuple[tuple[int, ...], ...]  # (layers, any number): visual tokens, counted from 0, massive in any of these
    largest: float  # the first token's largest activation in any layer, in root mean squares

    @property
    def all_dimensions(self) -> list[int]:
        return sorted(set().union(*self.dimensions))

    @property
    def all_visual(self) -> list[int]:
        return sorted(set().union(*self.visual))


@contextmanager
def watched_sinks(model: PreTrainedModel, first: int, visual: torch.Tensor) -> Iterator[list[Sinks]]:
    """The sinks of the forward pass that this thread makes inside a `with` block: one, in the list, after the block.

    `first` is the position of the first token, `visual` those of the visual tokens, int64, shape (visual tokens,).
    """
    thread, found, watched = threading.get_ident(), [], list[Sinks]()

    def look(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        if threading.get_ident() == thread:
            states = args[0] if args else named_arguments(module, args, kwargs)["hidden_states"]
            # gemma3n has several streams, of which its layers compute on the first.
            states = states[0] if states.ndim == 3 else states[0, 0]
            if len(states) > max([first, *visual.tolist()]):  # else tokens have left, which is told by what measures
                found.append(_massive(states, first, visual))

    with ExitStack() as hooks:
        for layer in find_decoder(model).layers:
            hooks.callback(layer.register_forward_pre_hook(look, with_kwargs=True).remove)
        yield watched
    dimensions, tokens, largest = zip(*found, strict=True)
    watched.append(Sinks(dimensions, tokens, max(largest)))


def _massive(states: torch.Tensor, first: int, visual: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...], float]:
    """Of hidden states, (sequence, hidden): the first token's massive dimensions, the visual tokens, by number, that
    are massive in any of them, and the first token's largest activation."""
    rms = torch.linalg.vector_norm(states, dim=-1, dtype=torch.float32) / math.sqrt(states.shape[-1])
    of_first = states[first].float().abs() / rms[first]
    dimensions = (of_first >= MASSIVE).nonzero()[:, 0]
    visual = visual.to(states.device)
    relative = states[visual][:, dimensions].float().abs() / rms[visual, None]
    massive = (relative >= MASSIVE).any(-1).nonzero()[:, 0]
    return tuple(dimensions.tolist()), tuple(massive.tolist()), float(of_first.max())
