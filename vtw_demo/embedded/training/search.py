"""Which layers can be left out.

The layers below those that look at the picture are left out one by one, each time the one whose absence costs least,
on the loss of answers about fresh scenes; every layer that is there sees the picture. Layers above are kept, though
answers need some of them less: what is to be found is how much of the model never looks.
"""

import random
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from vtw_demo.embedded.questions import SHORT_ANSWER_KINDS
from vtw_demo.embedded.scenes import draw, random_scene
from vtw_demo.embedded.training.model import keep_layers, load
from vtw_demo.embedded.training.packing import PackedSamples
from vtw_demo.embedded.training.parts import COARSE_SIDE, ROOM, TURNS, answer_loss, decode, embed
from vtw_demo.embedded.training.practice import scene_questions
from vtw_demo.models.devices import compute_dtype

# In the deeper half, the first layer with so much of its attention on the picture is the first that looks things up.
LOOKING = 0.2
# Questions with what the decoder reads of them; and the layer left out, the loss and share right, the layers kept.
Batch = tuple[PackedSamples, torch.Tensor]
Step = tuple[int, float, float, list[int]]


def fresh_batches(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, objects: int, options: Any
) -> list[Batch]:
    """Questions about plainly drawn scenes of at most so many objects."""
    generator, batches = random.Random("search"), []
    for _ in range(options.batches):
        scenes = [random_scene(generator, generator.randint(1, objects)) for _ in range(options.batch)]
        asked = [scene_questions(scene, TURNS, generator, SHORT_ANSWER_KINDS) for scene in scenes]
        batches.append(embed(model, processor, [draw(s) for s in scenes], asked, ROOM + COARSE_SIDE**2, COARSE_SIDE))
    return batches


def cost(model: LlavaForConditionalGeneration, batches: Sequence[Batch]) -> tuple[float, float]:
    """The mean loss, and the share of the answers of which every token is right."""
    answered = [
        answer_loss(model, samples, decode(model, samples, inputs).last_hidden_state) for samples, inputs in batches
    ]
    right = [fits for _, of_batch in answered for fits in of_batch]
    return sum(loss.item() for loss, _ in answered) / len(answered), sum(right) / len(right)


def attention_shares(model: LlavaForConditionalGeneration, batch: Batch) -> list[tuple[float, float]]:
    """Of each layer's attention at the last position of a prompt, the mean share on the first token and on the
    picture, over the batch's questions and the layer's heads."""
    samples, inputs = batch
    rows, positions = zip(*samples.ends, strict=True)
    visual = samples.input_ids == model.config.image_token_id
    model.set_attn_implementation("eager")
    # This implementation adds its mask.
    mask = torch.where(samples.attention_mask(), 0.0, torch.finfo(torch.bfloat16).min)
    layers = decode(model, samples, inputs, attention_mask=mask, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    shares = (attention.float().mean(1)[rows, positions] for attention in layers)
    return [(of[:, 0].mean().item(), (of * visual[list(rows)]).sum(-1).mean().item()) for of in shares]


def leave_out(model: LlavaForConditionalGeneration, batches: Sequence[Batch], below: int, count: int) -> list[Step]:
    """Leaves out layers below number `below` until `count` are left."""
    decoder, steps = model.model.language_model, list[Step]()
    whole, kept = decoder.layers, list(range(len(decoder.layers)))
    while len(kept) > count and kept[0] < below:
        tried = []
        for number in (n for n in kept if n < below):
            decoder.layers, without = whole, [n for n in kept if n != number]
            keep_layers(model, without)
            tried.append((*cost(model, batches), number, without))
        loss, right, number, kept = min(tried)
        steps.append((number, loss, right, kept))
        print(f"{len(kept)} layers, without {number}: loss {loss:.3f}, right {right:.1%}, kept {kept}", flush=True)
    return steps


@torch.no_grad()
def find_layers(options: Any) -> None:
    """Prints where the whole model looks, and what it costs to leave out layers."""
    model, processor, saved = load(options.runs, "whole")
    dtype = compute_dtype(model.device)
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        batches = fresh_batches(model, processor, saved["progress"]["level"], options)
        shares = attention_shares(model, batches[0])
        for number, (first, picture) in enumerate(shares):
            print(f"layer {number}: on the first token {first:.2f}, on the picture {picture:.2f}")
        deep = range(len(shares) // 2, len(shares))
        below = next((number for number in deep if shares[number][1] >= LOOKING), deep.start)
        loss, right = cost(model, batches)
        print(f"all layers: loss {loss:.3f}, right {right:.1%}; left out are layers below {below}", flush=True)
        leave_out(model, batches, below, options.count)
