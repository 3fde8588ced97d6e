"""Exact match on fresh scenes and on easy-vqa's test split, by layer: python -m vtw_demo.embedded.evaluation"""

from __future__ import annotations

import argparse
import platform
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from tqdm import tqdm

from vtw_demo.embedded.easy_vqa_data import easy_vqa_pictures
from vtw_demo.embedded.questions import SHORT_ANSWER_KINDS, ask_several
from vtw_demo.embedded.scenes import draw, random_scene
from vtw_demo.models import EMBEDDED, VisionLanguageModel, load
from vtw_demo.withdrawal import withdraw

EASY_VQA = "easy-vqa"


@dataclass(frozen=True)
class Item:
    """One question about one picture, and its answer."""

    kind: str
    picture: Image.Image
    question: str
    answer: str


def scene_items(count: int, objects: int, seed: int) -> list[Item]:
    """One question each about `count` fresh scenes of 1 to `objects` objects; kinds evenly among those that fit."""
    items = []
    for number in range(count):
        # Seeds that training never uses: its own all name a stage.
        generator = random.Random(f"{seed} evaluation {number}")
        scene = random_scene(generator, generator.randint(1, objects))
        question = ask_several(scene, 1, generator, SHORT_ANSWER_KINDS)[0]
        items.append(Item(question.kind, draw(scene), question.text, question.answer))
    return items


def easy_vqa_items(count: int, seed: int) -> list[Item]:
    """`count` questions of easy-vqa's test split, drawn at random."""
    asked = [(pictured, pair) for pictured in easy_vqa_pictures("test") for pair in pictured.questions]
    chosen = random.Random(f"{seed} easy-vqa").sample(asked, count)
    return [Item(EASY_VQA, pictured.picture(), question, answer) for pictured, (question, answer) in chosen]


def answers(vlm: VisionLanguageModel, items: Sequence[Item], layer: int, batch: int = 32) -> Iterator[str]:
    """The model's greedy answers, with the visual tokens withdrawn at `layer`, in order."""
    for start in range(0, len(items), batch):
        inputs = vlm.prepare_batch([(item.picture, item.question) for item in items[start : start + batch]])
        with torch.inference_mode(), withdraw(vlm.model, layer):
            output = vlm.generate(**inputs, max_new_tokens=12)
        for row in output[:, inputs["input_ids"].shape[1] :]:
            yield vlm.decode(row.tolist())


def exact_match(vlm: VisionLanguageModel, items: Sequence[Item], layer: int, label: str) -> dict[str, tuple[int, int]]:
    """For each kind of question, how many answers are right and how many there are."""
    right: dict[str, int] = defaultdict(int)
    asked: dict[str, int] = defaultdict(int)
    given = tqdm(answers(vlm, items, layer), total=len(items), desc=label, leave=False)
    for item, answer in zip(items, given, strict=True):
        asked[item.kind] += 1
        right[item.kind] += answer.strip().rstrip(".").lower() == item.answer.lower()
    return {kind: (right[kind], asked[kind]) for kind in asked}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--quantization", choices=("4bit", "8bit"))
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--objects", type=int, default=3, help="at most, in a scene")
    parser.add_argument("--easy-vqa", type=int, default=1000, help="questions of its test split")
    parser.add_argument("--layers", type=int, nargs="*", help="withdrawal layers; by default L/2 and L, the full model")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    vlm = load(options.model, options.quantization)
    layers = options.layers or [vlm.layers // 2, vlm.layers]
    scenes = scene_items(options.scenes, options.objects, options.seed)
    easy = easy_vqa_items(options.easy_vqa, options.seed)
    columns = []
    for layer in layers:
        by_kind = exact_match(vlm, scenes, layer, f"scenes, K = {layer}") if scenes else {}
        whole = tuple(sum(counts) for counts in zip(*by_kind.values(), strict=True)) or (0, 0)
        easy_counts = exact_match(vlm, easy, layer, f"easy-vqa, K = {layer}") if easy else {}
        columns.append({**by_kind, f"all scenes, 1 to {options.objects} objects": whole, **easy_counts})
    print(
        f"{vlm.name}, {vlm.precision}, {vlm.device}, {platform.processor() or platform.machine()}, seed {options.seed}"
    )
    heads = [f"K = {layer}" + (" (full)" if layer == vlm.layers else "") for layer in layers]
    print("| exact match | questions | " + " | ".join(heads) + " |")
    print("|---|---|" + "---|" * len(heads))
    for kind in sorted(columns[0], key=lambda name: (name.startswith("all"), name == EASY_VQA, name)):
        shares = " | ".join(f"{100 * column[kind][0] / max(1, column[kind][1]):.1f} %" for column in columns)
        print(f"| {kind} | {columns[0][kind][1]} | {shares} |")


if __name__ == "__main__":
    main()
