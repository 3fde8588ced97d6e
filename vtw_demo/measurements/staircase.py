"""The staircase: what each decoder layer works on in a prefill, and the step that withdrawal makes in it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedConfig

from vtw_demo.measurements.flops import kv_cache_bytes_by_layer, prefill_flops_by_layer


@dataclass(frozen=True)
class LayerCost:
    """What one decoder layer costs, or several of them together.

    - `tokens`: of the prompt, that the layer runs on in the prefill.
    - `flops`: of that.
    - `kv_cache_bytes`: its part of the KV cache.

    Raises ValueError for a negative number.
    """

    tokens: int
    flops: int
    kv_cache_bytes: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise ValueError(f"{name} can't be negative; this is {value}.")


@dataclass(frozen=True)
class Staircase:
    """What the layers cost for one prompt, with every layer seeing the picture and withdrawn at `layer`.

    `full` and `withdrawn` have an entry for each decoder layer, in order. The language model head, which is the same in
    both runs, is in neither.

    Raises ValueError for lengths that differ, a withdrawal layer outside 1 to their length, and runs that differ before
    it.
    """

    layer: int
    full: tuple[LayerCost, ...]
    withdrawn: tuple[LayerCost, ...]

    def __post_init__(self) -> None:
        layers = len(self.full)
        if layers != len(self.withdrawn):
            raise ValueError(f"full has {layers} layers, withdrawn has {len(self.withdrawn)}.")
        if not 1 <= self.layer <= layers:
            raise ValueError(f"layer must be from 1 to {layers}, the number of layers; this is {self.layer}.")
        if self.full[: self.layer] != self.withdrawn[: self.layer]:
            raise ValueError(f"Both runs are the same before layer {self.layer}; here they differ.")

    @property
    def full_total(self) -> LayerCost:
        """Summed over all layers."""
        return _total(self.full)

    @property
    def withdrawn_total(self) -> LayerCost:
        """Summed over all layers."""
        return _total(self.withdrawn)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return {
            **asdict(self),
            "full_total": asdict(self.full_total),
            "withdrawn_total": asdict(self.withdrawn_total),
        }


def staircase(
    config: PreTrainedConfig,
    prompt_tokens: int,
    visual_tokens: int,
    layer: int,
    decoded_tokens: int = 0,
    bytes_per_element: int = 2,
) -> Staircase:
    """The staircase of one prompt, in closed form (`vtw_demo.measurements.flops`; arXiv 2405.05803, section 4).

    - `config`: of a text decoder, or of a vision-language model that holds one.
    - `prompt_tokens`: positions of the prompt, visual ones counted; `visual_tokens`: how many of them are.
    - `layer`: the withdrawal layer K; K = L, the number of decoder layers, withdraws nothing.
    - `decoded_tokens`: tokens after the prompt whose keys and values the KV cache holds too; 0 for the cache as the
      prefill leaves it. Tokens and FLOPs are those of the prefill, whatever this is.
    - `bytes_per_element`: of the KV cache, 2 in float16 and bfloat16, 4 in float32.

    Raises ValueError as `vtw_demo.measurements.flops.kv_cache_bytes_by_layer` does.
    """

    def costs(withdrawal_layer: int) -> tuple[LayerCost, ...]:
        prompt = (config, prompt_tokens, visual_tokens, withdrawal_layer)
        flops = prefill_flops_by_layer(*prompt).layers
        cache = kv_cache_bytes_by_layer(*prompt, decoded_tokens, bytes_per_element)
        return tuple(LayerCost(part.tokens, part.total, held) for part, held in zip(flops, cache, strict=True))

    withdrawn = costs(layer)
    return Staircase(layer, costs(len(withdrawn)), withdrawn)


def _total(costs: tuple[LayerCost, ...]) -> LayerCost:
    return LayerCost(
        sum(cost.tokens for cost in costs),
        sum(cost.flops for cost in costs),
        sum(cost.kv_cache_bytes for cost in costs),
    )
