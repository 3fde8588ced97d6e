"""Small random models of the families in `tests.families`, prompts for them, and withdrawal held against an oracle."""

import functools
import inspect
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import transformers as hf
from torch import nn

from tests.families import END, FAMILIES, NEEDS_TIMM, SPECIAL, START, Family
from tests.oracles import kept_tokens_alone, visual_keys_blocked
from vtw_demo.withdrawal.segments import visual_token_mask
from vtw_demo.withdrawal.withdraw import withdraw


@dataclass
class TinyModel:
    """A family's tiny random model."""

    family: Family
    model: Any
    counts: dict[str, int] = field(default_factory=dict)
    """How many visual tokens a picture ("image") and a video ("video") have."""

    @property
    def parameters(self) -> Collection[str]:
        """The inputs that the model takes: older versions of some know fewer."""
        return inspect.signature(self.model.forward).parameters

    def prompt(self, *rows: list[int | str]) -> dict[str, torch.Tensor]:
        """A left-padded batch; in a row, "image" and "video" stand for one of these."""
        config = self.model.config
        ids, types = [], []
        for row in rows:
            row_ids, row_types = [], []
            for part in row:
                if isinstance(part, int):
                    part_ids, part_types = [part], [0]
                else:
                    is_image = part == "image" or self.family.video_is_image
                    named = config if hasattr(config, "image_token_id") else config.vision_config
                    token = named.image_token_id if is_image else config.video_token_id
                    count, around = self.counts[part], int(self.family.around)
                    part_ids = [START] * around + [token] * count + [END] * around
                    part_types = [0] * around + [1 if part == "image" else 2] * count + [0] * around
                row_ids += part_ids
                row_types += part_types
            ids.append(row_ids)
            types.append(row_types)
        length = max(map(len, ids))
        inputs = {
            "input_ids": torch.tensor([[0] * (length - len(row)) + row for row in ids]),
            "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in ids]),
        }
        if self.family.token_types in self.parameters:
            padded = torch.tensor([[0] * (length - len(row)) + row for row in types])
            inputs[self.family.token_types] = padded * (not self.family.one_type)
            if "moe_mm_token_type_ids" in self.parameters:
                marks = torch.isin(inputs["input_ids"], torch.tensor([START, END]))
                inputs["moe_mm_token_type_ids"] = padded.masked_fill(marks, 1)
        for name, make in (("image", self.family.images), ("video", self.family.videos)):
            count = sum(row.count(name) for row in rows)
            if count and make is not None:
                inputs |= self.cast(make(count))
        return inputs

    def cast(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Those that the model takes, with numbers of its own type."""
        return {
            name: tensor.to(self.model.dtype) if tensor.is_floating_point() else tensor
            for name, tensor in inputs.items()
            if name in self.parameters
        }


@functools.cache
def build(name: str, dtype: torch.dtype = torch.float32) -> TinyModel:
    """The tiny model of a family, always with the same random weights."""
    return make(FAMILIES[name], dtype)


def make(family: Family, dtype: torch.dtype = torch.float32) -> TinyModel:
    torch.manual_seed(0)
    config = family.config()
    model_class = getattr(hf, family.model)
    if family.vision is None:
        model = model_class._from_config(config, dtype=dtype)
    else:
        real, stand_in = hf.AutoModel.from_config, family.vision
        with mock.patch.object(
            hf.AutoModel,
            "from_config",
            lambda config, **options: stand_in(config) if config.model_type in NEEDS_TIMM else real(config, **options),
        ):
            model = model_class._from_config(config, dtype=dtype)
    model = model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                # At the usual scale of 0.02, attention would be so even that it hardly mattered to what.
                nn.init.normal_(parameter, std=0.3)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        tiny = TinyModel(family, model)
        encoder = getattr(model, "model", model)
        # Older versions of llama4 want it, and don't use it.
        unused = {"vision_feature_select_strategy": "default"} if family.model.startswith("Llama4") else {}
        if family.tokens is None:
            encoded = encoder.get_image_features(**tiny.cast(family.images(1)), **unused)
        tiny.counts["image"] = family.tokens or count_features(encoded)
        if family.videos is not None:
            encode = getattr(encoder, "get_video_features", encoder.get_image_features)
            tiny.counts["video"] = count_features(encode(*tiny.cast(family.videos(1)).values()))
            if family.model.startswith("LlavaOnevision"):
                tiny.counts["video"] = 3  # older versions count the two frames, not the token that ends a video
    return tiny


def count_features(encoded: Any) -> int:
    pooled = getattr(encoded, "pooler_output", None)
    features = encoded.last_hidden_state if pooled is None else pooled
    parts = [features] if isinstance(features, torch.Tensor) else features
    return sum(part[..., 0].numel() for part in parts)


PROMPTS: dict[str, list[list[int | str]]] = {
    "one image": [[1, 2, "image", 3, 4, 5]],
    "image first": [["image", 3, 4]],
    "several images": [[1, "image", 2, 3, "image", "image", 4, 5]],
    "ragged batch": [[1, "image", 2, 3], [4, 5, 6], ["image", 2, "image", 3, 4], [7] * 9 + ["image", 8]],
    "no image": [[1, 2, 3], [4, 5]],
    "video": [[1, "video", 2, 3]],
    "images and videos": [[1, "image", 2, "video", 3, "image", 4], [5, 6, 7], [8, "video", 9]],
}
OPTIONS = {
    "max_new_tokens": 4,
    "do_sample": False,
    "suppress_tokens": list(SPECIAL),
    "output_logits": True,
    "return_dict_in_generate": True,
}


def prompts_of(name: str) -> list[str]:
    """The names of the prompts that a family takes."""
    family = FAMILIES[name]
    return [
        kind
        for kind in PROMPTS
        if (family.videos or "video" not in kind) and not (family.video_is_image and kind == "images and videos")
    ]


CACHING = {"use_cache", "cache_implementation", "prefill_chunk_size"}
"""Options of `generate` for which the oracle without a cache has no use."""


@dataclass(frozen=True)
class Comparison:
    """A prompt generated from with withdrawal, and by the oracle."""

    inputs: dict[str, torch.Tensor]
    visual: torch.Tensor
    out: Any
    expected: Any

    @property
    def same_tokens(self) -> bool:
        return torch.equal(self.out.sequences, self.expected.sequences)

    @property
    def error(self) -> float:
        """The largest difference between logits, in standard deviations of the oracle's."""
        logits, expected = torch.stack(self.out.logits), torch.stack(self.expected.logits)
        allowed = expected > torch.finfo(expected.dtype).min / 2  # chameleon's own images aren't
        return ((logits - expected)[allowed].abs().max() / expected[allowed].std()).item()


def oracle(tiny: TinyModel, layer: int, left: torch.Tensor) -> AbstractContextManager[Any]:
    """What the model must give where tokens of a prompt leave before `layer`: those at `left`, (batch, prompt)."""
    if tiny.family.masks:
        return visual_keys_blocked(tiny.model, layer, left)
    return kept_tokens_alone(tiny.model, {layer: left})


def compare(tiny: TinyModel, rows: list[list[int | str]], layer: int, **options: Any) -> Comparison:
    """Generate with withdrawal at `layer`, and by the oracle."""
    inputs = tiny.prompt(*rows)
    visual = visual_token_mask(tiny.model.config, inputs["input_ids"])
    with oracle(tiny, layer, visual):
        torch.manual_seed(0)
        known = options if tiny.family.masks else {name: options[name] for name in options.keys() - CACHING}
        expected = tiny.model.generate(**inputs, **OPTIONS | known)
    with withdraw(tiny.model, layer=layer):
        torch.manual_seed(0)
        out = tiny.model.generate(**inputs, **OPTIONS | options)
    return Comparison(inputs, visual, out, expected)
