"""What a model answers in each variant, in batches.

The answers at all withdrawal layers K come from one forward pass where they can: `sweep`, with the full model's answer
given, says which token each K would have chosen after each part of it. Where these are the answer's own tokens, greedy
decoding with withdrawal at K gives just that answer. Where one differs, the model answers with `withdraw`.

Where each question has a K of its own, this is found first, and then the answer is the one at that K.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch.nn.functional import kl_div
from torch.utils.data import BatchSampler

from vtw_demo.comparison.data_rows import DataSample
from vtw_demo.errors import UserError
from vtw_demo.evaluation.variants import FULL, PerQuestion, PromptSize, Variant
from vtw_demo.measurements.layer_sweep import Sweep, choose_layer, sweep
from vtw_demo.models.devices import check_finite
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.withdrawal.segments import visual_token_mask

SWEPT_FROM = 3  # K: a sweep takes up to two prefills, and withdrawal at one K less than one


@dataclass(frozen=True)
class Outcome:
    answer: str
    kl: float  # KL(P_way || P_full) of the answer's first token, natural logarithm
    flops_left: float | None  # the share of the full prefill's FLOPs; None where costs aren't known
    layer: int | None = None  # K where the question has one of its own


class Request(NamedTuple):
    """What is asked together, as `answer_samples` takes it."""

    samples: Sequence[DataSample]
    variants: Sequence[Variant]
    max_new_tokens: int
    batch_size: int
    seed: int


Answers = list[dict[Variant, Outcome]]  # one for each sample
OnAnswers = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class _Answered:
    """What `generate` gave for a batch."""

    inputs: dict[str, torch.Tensor]
    sizes: tuple[PromptSize, ...]
    tokens: torch.Tensor  # int64, shape (batch, longest answer), filled up after an answer's end
    lengths: tuple[int, ...]  # with the end's token
    first: torch.Tensor  # float32, shape (batch, vocabulary): log-probabilities of the first token


def answer_samples(
    vlm: VisionLanguageModel,
    samples: Sequence[DataSample],
    variants: Sequence[Variant],
    max_new_tokens: int,
    batch_size: int,
    seed: int = 0,
    on_answers: OnAnswers = lambda count: None,
) -> Answers:
    """What each sample is answered in each of `variants`, which begin with `FULL`; greedy. `on_answers` is called with
    each number of further answers. What is drawn at random depends on `seed` and the sample alone."""
    assert variants[0] == FULL
    per_question = [variant for variant in variants if variant.kind in get_args(PerQuestion)]
    chosen: list[dict[Variant, Variant]] = [{} for _ in samples]  # for each of these, withdrawal at the question's K
    withdrawn = [variant for variant in variants if variant.kind == "withdrawn"]
    if per_question:
        withdrawn = [Variant("withdrawn", layer) for layer in range(1, vlm.layers)]
    is_swept = len(withdrawn) >= SWEPT_FROM and chooses_likeliest(vlm)
    found: Answers = [{} for _ in samples]
    first: dict[int, torch.Tensor] = {}
    with torch.inference_mode():
        for batch in BatchSampler(range(len(samples)), batch_size, drop_last=False):
            full = _answer(vlm, [samples[i] for i in batch], FULL, max_new_tokens, seed)
            swept = sweep(vlm.model, full.inputs, full.tokens) if is_swept or per_question else None
            decided = _agreeing(vlm, full, withdrawn, swept) if is_swept and swept else [{} for _ in batch]
            for row, index in enumerate(batch):
                first[index] = full.first[row]
                found[index] = {FULL: _outcome(vlm, full, row, FULL, 0.0), **decided[row]}
                for variant in per_question:
                    assert swept is not None
                    layer = _own_layer(vlm, samples[index], variant, swept, row)
                    chosen[index][variant] = Variant("withdrawn", layer) if layer < vlm.layers else FULL
                on_answers(len(found[index].keys() & set(variants)))
        at_own = dict.fromkeys(variant for of_sample in chosen for variant in of_sample.values())
        for variant in dict.fromkeys([*(way for way in variants if way not in per_question), *at_own]):
            left = [
                index
                for index, outcomes in enumerate(found)
                if variant not in outcomes and (variant in variants or variant in chosen[index].values())
            ]
            for batch in BatchSampler(left, batch_size, drop_last=False):
                answered = _answer(vlm, [samples[i] for i in batch], variant, max_new_tokens, seed)
                before = torch.stack([first[index] for index in batch])
                kl = kl_div(before, answered.first, reduction="none", log_target=True).sum(-1).clamp_min(0).tolist()
                for row, index in enumerate(batch):
                    found[index][variant] = _outcome(vlm, answered, row, variant, kl[row])
                on_answers(len(batch) if variant in variants else 0)
    for outcomes, of_sample in zip(found, chosen, strict=True):
        for variant, at in of_sample.items():
            outcomes[variant] = replace(outcomes[at], layer=at.layer or vlm.layers)
    on_answers(len(found) * len(per_question))
    return [{variant: outcomes[variant] for variant in variants} for outcomes in found]


def _own_layer(vlm: VisionLanguageModel, sample: DataSample, variant: Variant, swept: Sweep, row: int) -> int:
    """K of one question, `row` of what was swept; L where nothing is to be withdrawn."""
    if variant.kind == "own":
        return choose_layer(swept.layers, swept.kl[row]) or vlm.layers
    inputs = vlm.prepare(sample.open(), sample.question)
    with variant.context(vlm.model, (), ()) as withdrawal:
        vlm.generate(**inputs, max_new_tokens=1)
    return withdrawal.layer


def chooses_likeliest(vlm: VisionLanguageModel) -> bool:
    """Whether greedy decoding takes the likeliest token as it is: some models are not to repeat themselves."""
    config = vlm.model.generation_config
    return all(getattr(config, name, None) in (None, neutral) for name, neutral in _NEUTRAL.items())


# What changes the logits in greedy decoding, and where it doesn't.
_NEUTRAL: dict[str, Any] = json.loads(Path(__file__).with_name("neutral.json").read_text(encoding="utf-8"))


def prompt_sizes(vlm: VisionLanguageModel, inputs: dict[str, torch.Tensor]) -> tuple[PromptSize, ...]:
    """Of each row of a batch."""
    visual = visual_token_mask(vlm.model.config, inputs["input_ids"]).sum(1).tolist()
    tokens = inputs["attention_mask"].sum(1).tolist()
    return tuple(PromptSize(*pair) for pair in zip(tokens, visual, strict=True))


def seeds_of(samples: Sequence[DataSample], seed: int) -> list[str]:
    """From which the random draws for each sample follow."""
    return [f"{seed} {sample.name} {sample.question}" for sample in samples]


def _answer(
    vlm: VisionLanguageModel, samples: Sequence[DataSample], variant: Variant, max_new_tokens: int, seed: int
) -> _Answered:
    inputs = vlm.prepare_batch([(sample.open(), sample.question) for sample in samples])
    sizes = prompt_sizes(vlm, inputs)
    vlm.check_length(max(size.tokens for size in sizes), max_new_tokens)
    logits: list[torch.Tensor] = []

    def note(module: Any, args: tuple, output: Any) -> None:
        check_finite(output.logits[:, -1], [sample.name for sample in samples])
        if not logits:
            logits.append(output.logits[:, -1])

    # The logits that `generate` returns itself are of every token, and take the memory of all.
    handle = vlm.model.register_forward_hook(note)
    try:
        with variant.context(vlm.model, sizes, seeds_of(samples, seed)):
            output = vlm.generate(**inputs, max_new_tokens=max_new_tokens)
    finally:
        handle.remove()
    tokens = output[:, inputs["input_ids"].shape[1] :]
    is_end = torch.isin(tokens, torch.tensor(vlm.ends, dtype=tokens.dtype, device=tokens.device)).tolist()
    lengths = [row.index(True) + 1 if True in row else len(row) for row in is_end]
    return _Answered(inputs, sizes, tokens, tuple(lengths), logits[0].float().log_softmax(-1))


def _agreeing(
    vlm: VisionLanguageModel, full: _Answered, withdrawn: Sequence[Variant], swept: Sweep
) -> list[dict[Variant, Outcome]]:
    """For each row the outcomes at those K where the answer is the full model's own."""
    assert swept.answer_choices is not None
    column = torch.arange(full.tokens.shape[1], device=full.tokens.device)
    beyond = column >= torch.tensor(full.lengths, device=full.tokens.device)[:, None]
    same = ((swept.answer_choices == full.tokens[:, None]) | beyond[:, None]).all(-1).tolist()
    divergence = swept.kl.tolist()
    decided: list[dict[Variant, Outcome]] = [{} for _ in same]
    for variant in withdrawn:
        assert variant.layer is not None
        for row, outcomes in enumerate(decided):
            if same[row][variant.layer - 1]:
                outcomes[variant] = _outcome(vlm, full, row, variant, divergence[row][variant.layer - 1])
    return decided


def _outcome(vlm: VisionLanguageModel, answered: _Answered, row: int, variant: Variant, kl: float) -> Outcome:
    try:
        left = variant.flops_left(vlm.model.config, answered.sizes[row])
    except UserError:
        left = None
    tokens = answered.tokens[row, : answered.lengths[row]].tolist()
    return Outcome(vlm.decode(tokens), kl, left)
