"""Is withdrawal's memory enough? A second question about the same picture, in the same conversation, at each K.

It asks for something that the first didn't, and its answer is another. Each K goes on from its own first answer:

- `kept`: with the KV cache that the first answer left, whose layers from K on hold no visual token,
- `anew`: the whole conversation read again at the same K, and `anew_full`: read again without withdrawal,
- `alone`: the second question as a first one, at the same K.
"""

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from vtw_demo.embedded.questions import SHORT_ANSWER_KINDS, Question, ask_several
from vtw_demo.embedded.scenes import MAXIMUM_OBJECTS, Scene, draw, random_scene
from vtw_demo.evaluation.metrics import estimates, exact_match
from vtw_demo.measurements.flops import continued_flops, prefill_flops
from vtw_demo.models.prompt import Prompt
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.withdrawal.withdraw import withdraw

WAYS = ("kept", "anew", "anew_full", "alone")
ANSWER_TOKENS = 16


@dataclass(frozen=True)
class Pair:
    name: str
    scene: Scene
    first: Question
    second: Question


def pairs(count: int, seed: int) -> Iterator[Pair]:
    """Two questions of different kinds and answers about each of `count` fresh scenes of at least two objects."""
    for number in range(count):
        generator = random.Random(f"{seed} second questions {number}")
        scene = random_scene(generator, generator.randint(2, MAXIMUM_OBJECTS))
        first, second = ask_several(scene, 2, generator, SHORT_ANSWER_KINDS)
        while second.kind == first.kind or second.answer == first.answer:
            (second,) = ask_several(scene, 1, generator, SHORT_ANSWER_KINDS)
        yield Pair(f"scene {number}", scene, first, second)


def ask_pairs(
    vlm: VisionLanguageModel, asked: Sequence[Pair], layers: Sequence[int], file: Path, of: dict[str, Any]
) -> list[dict[str, Any]]:
    """A row for each pair and K; those that `file` has already are taken from it, if they are `of` the same run."""
    file.parent.mkdir(parents=True, exist_ok=True)
    known = {row["name"]: row for row in _lines(file) if row["of"] == of}
    rows = list[dict[str, Any]]()
    with file.open("a", encoding="utf-8") as written:
        written.write("\n" if written.tell() else "")  # the last line may have been cut short
        for pair in tqdm(asked, desc="second questions", unit="pair"):
            if pair.name not in known:
                known[pair.name] = {"name": pair.name, "of": of, "rows": list(_ask(vlm, pair, layers))}
                written.write(json.dumps(known[pair.name]) + "\n")
                written.flush()
            rows += known[pair.name]["rows"]
    return rows


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        with suppress(ValueError):  # half a line of a run that was killed
            yield json.loads(line)


def _ask(vlm: VisionLanguageModel, pair: Pair, layers: Sequence[int]) -> Iterator[dict[str, Any]]:
    picture, read = draw(pair.scene), dict[tuple[int, ...], str]()
    prompt, alone = vlm.prompt(picture, pair.first.text), vlm.prompt(picture, pair.second.text)
    for layer in layers:
        with torch.inference_mode(), withdraw(vlm.model, layer):
            first, cache = _answer(vlm, dict(prompt.inputs))
            conversation = vlm.continued(prompt, first, pair.second.text)
            anew, _ = _answer(vlm, dict(conversation.inputs))
            kept, _ = _answer(vlm, {**conversation.further_inputs, "past_key_values": cache})
            by_itself, _ = _answer(vlm, dict(alone.inputs))
        words = tuple(conversation.inputs["input_ids"][0].tolist())
        if words not in read:
            with torch.inference_mode():
                read[words] = vlm.decode(_answer(vlm, dict(conversation.inputs))[0])
        said = {"kept": vlm.decode(kept), "anew": vlm.decode(anew), "anew_full": read[words]}
        said["alone"] = vlm.decode(by_itself)
        texts = {"first": [pair.first.text, pair.first.answer], "second": [pair.second.text, pair.second.answer]}
        yield {"name": pair.name, "K": layer, **texts, "first_said": vlm.decode(first), **said} | _flops(
            vlm, conversation, layer
        )


def _answer(vlm: VisionLanguageModel, inputs: dict[str, Any]) -> tuple[list[int], Any]:
    output = vlm.generate(**inputs, max_new_tokens=ANSWER_TOKENS, return_dict_in_generate=True)
    return output.sequences[0, inputs["input_ids"].shape[1] :].tolist(), output.past_key_values


def _flops(vlm: VisionLanguageModel, conversation: Prompt, layer: int) -> dict[str, int]:
    size, config = (conversation.length, conversation.visual_tokens), vlm.model.config
    return {
        "kept_flops": continued_flops(config, *size, layer, conversation.held),
        "anew_flops": prefill_flops(config, *size, layer),
        "anew_full_flops": prefill_flops(config, *size, vlm.layers),
    }


def figures(rows: Sequence[dict[str, Any]], layers: Sequence[int], seed: int) -> list[dict[str, Any]]:
    """By K: how many first and second answers are right, each way; how often the kept cache says what the other ways
    say, and how often it says the first answer again; FLOPs as shares of reading all anew. With 95 % intervals."""
    found = []
    for layer in layers:
        of_layer = [row for row in rows if row["K"] == layer]
        columns = {
            "first right": [exact_match(row["first_said"], row["first"][1:]) for row in of_layer],
            **{way: [exact_match(row[way], row["second"][1:]) for row in of_layer] for way in WAYS},
            "kept = anew": [float(row["kept"] == row["anew"]) for row in of_layer],
            "kept = anew_full": [float(row["kept"] == row["anew_full"]) for row in of_layer],
            "first answer again": [float(row["kept"] == row["first_said"]) for row in of_layer],
            **{f"{way} FLOPs": [row[f"{way}_flops"] / row["anew_full_flops"] for row in of_layer] for way in WAYS[:2]},
        }
        names = [row["name"] for row in of_layer]
        estimated = estimates(list(zip(*columns.values(), strict=True)), names, seed)
        found.append({"K": layer, **{name: vars(one) for name, one in zip(columns, estimated, strict=True)}})
    return found


def markdown(found: Sequence[dict[str, Any]], layers: int) -> str:
    shown = ["first right", *WAYS, "kept = anew", "kept = anew_full", "first answer again", "kept FLOPs", "anew FLOPs"]
    lines = ["| K | " + " | ".join(shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for row in found:
        figure = [f"{100 * row[name]['mean']:.1f} % ({100 * row[name]['low']:.1f} to {100 * row[name]['high']:.1f})"
                  for name in shown[:-2]]  # fmt: skip
        figure += [f"{100 * row[name]['mean']:.1f} %" for name in shown[-2:]]
        lines.append(f"| {'full' if row['K'] == layers else row['K']} | " + " | ".join(figure) + " |")
    return "\n".join(lines)
