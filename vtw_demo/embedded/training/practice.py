"""What is practised next: scenes as hard as they are mastered, questions as often as they are answered wrongly."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed
from PIL import Image

from vtw_demo.embedded.drawing_styles import badly_kept, random_style
from vtw_demo.embedded.easy_vqa_data import PicturedQuestions
from vtw_demo.embedded.phrasings import carelessly_typed, rephrased
from vtw_demo.embedded.questions import SHORT_ANSWER_KINDS, ask_several
from vtw_demo.embedded.scenes import COLOURS, MAXIMUM_OBJECTS, Scene, draw, random_scene
from vtw_demo.embedded.unknown_pictures import MODEST_ANSWER, unknown_picture

# Shares of the questions asked in other words, and of the pictures drawn or kept otherwise than plainly.
REPHRASED = 0.4
STYLED = 0.4


@dataclass
class Curriculum:
    """More objects a scene once those before are mastered: `mastery` of the newest level's answers right.

    Half of the scenes have the newest number of objects. In the end a number is the more frequent the larger it is, by
    even steps: after mostly scenes of six, 38 of 64 descriptions of scenes of five named a sixth.
    """

    mastery: float
    level: int = 1
    right: float = 0.0
    history: list[tuple[int, int]] = field(default_factory=list)

    def objects(self, generator: random.Random) -> int:
        if self.level == MAXIMUM_OBJECTS:
            return max(generator.randint(1, self.level), generator.randint(1, self.level))
        return self.level if generator.random() < 0.5 else generator.randint(1, self.level)

    def record(self, step: int, right: float) -> None:
        self.right += 0.05 * (right - self.right)
        if self.right > self.mastery and self.level < MAXIMUM_OBJECTS:
            self.history.append((step, self.level))
            self.level, self.right = self.level + 1, 0.0


@dataclass
class Shares:
    """Running shares of right answers, by kind of question."""

    emphasis: tuple[str, ...] = ()
    """Kinds that half of the questions are about."""
    smooth: dict[str, float] = field(default_factory=dict)

    def record(self, kind: str, right: bool) -> None:
        before = self.smooth.get(kind, 0.0)
        self.smooth[kind] = before + 0.01 * (right - before)

    def kinds(self) -> tuple[str, ...]:
        """The kinds of short answers, each more often the more often it is wrong: up to eight times."""
        kinds = [kind for kind in SHORT_ANSWER_KINDS for _ in range(1 + round(7 * (1 - self.smooth.get(kind, 0.0))))]
        for number in range(len(kinds) if self.emphasis else 0):
            kinds.append(self.emphasis[number % len(self.emphasis)])
        return tuple(kinds)


@dataclass
class Progress:
    """What the answers of all steps so far were like, which decides what is practised next."""

    curriculum: Curriculum
    shares: Shares

    def record(
        self, right: list[list[bool]], kinds: Sequence[Sequence[str]], scenes: Sequence[Scene | None], step: int
    ) -> None:
        """Which turns of each row were right after `step` steps, their kinds, and the row's scene."""
        newest: list[bool] = []
        for row_right, row_kinds, scene in zip(right, kinds, scenes, strict=True):
            for is_right, kind in zip(row_right, row_kinds, strict=True):
                self.shares.record(kind, is_right)
                if scene is not None and len(scene.objects) == self.curriculum.level and kind in SHORT_ANSWER_KINDS:
                    newest.append(is_right)
        # All processes go on to scenes of more objects at once.
        counts = torch.tensor([float(sum(newest)), float(len(newest))])
        torch.distributed.all_reduce(counts)
        if counts[1] > 0:
            self.curriculum.record(step, (counts[0] / counts[1]).item())

    def state(self) -> dict[str, Any]:
        return {"curriculum": vars(self.curriculum), "shares": self.shares.smooth}

    def restore(self, state: dict[str, Any]) -> None:
        self.curriculum, self.shares.smooth = Curriculum(**state["curriculum"]), state["shares"]

    def figures(self) -> dict[str, Any]:
        shares = {kind: f"{share:.2f}" for kind, share in self.shares.smooth.items()}
        return {"level": self.curriculum.level, **shares}


def practice_scene(generator: random.Random, curriculum: Curriculum) -> Scene:
    """Half of the scenes have two colours only: where a colour tells objects apart, nobody learns to use the shape."""
    colours = generator.sample(tuple(COLOURS), 2 if generator.random() < 0.5 else len(COLOURS))
    return random_scene(generator, curriculum.objects(generator), colours)


def scene_questions(
    scene: Scene, turns: int, generator: random.Random, kinds: tuple[str, ...]
) -> list[tuple[str, str, str]]:
    questions = ask_several(scene, turns, generator, kinds)
    for number, (kind, share) in enumerate((("description", 0.9), ("listing", 0.4))):
        if generator.random() < share:
            questions[number] = ask_several(scene, 1, generator, (kind,))[0]
    generator.shuffle(questions)
    questions = [rephrased(q, generator) if generator.random() < REPHRASED else q for q in questions]
    return [(q.kind, carelessly_typed(q.text, generator), q.answer) for q in questions]


def practice_picture(scene: Scene, generator: random.Random) -> Image.Image:
    """The scene drawn plainly or in another style, kept well or badly."""
    picture = draw(scene, style=random_style(generator)) if generator.random() < STYLED else draw(scene)
    return badly_kept(picture, generator) if generator.random() < STYLED else picture


@dataclass(frozen=True)
class Pictures:
    """What `mixed_pictures` draws from besides scenes."""

    easy_vqa: Sequence[PicturedQuestions]
    photos: Sequence[Image.Image]


def mixed_pictures(
    others: Pictures, progress: Progress, generator: random.Random, count: int, turns: int
) -> tuple[list[Image.Image], list[list[tuple[str, str, str]]], list[Scene | None]]:
    """`count` pictures, 15 % of them easy-vqa's and 10 % no drawn scene, what is asked about each in
    `turns` questions, and each one's scene, None where it is none."""
    pictures: list[Image.Image] = []
    asked: list[list[tuple[str, str, str]]] = []
    scenes: list[Scene | None] = []
    kinds = progress.shares.kinds()
    for _ in range(count):
        what = generator.random()
        scene = practice_scene(generator, progress.curriculum)
        if what < 0.15:
            chosen = generator.choice(others.easy_vqa)
            picture = chosen.picture()
            pictures.append(badly_kept(picture, generator) if generator.random() < 0.2 else picture)
            questions = generator.sample(chosen.questions, len(chosen.questions))
            asked.append([("easy-vqa", text, answer) for text, answer in questions])
            scenes.append(None)
        elif what < 0.25:
            pictures.append(unknown_picture(others.photos, generator))
            about_nothing = scene_questions(scene, 5, generator, SHORT_ANSWER_KINDS)
            asked.append([("unknown", text, MODEST_ANSWER) for _, text, _ in about_nothing])
            scenes.append(None)
        else:
            pictures.append(practice_picture(scene, generator))
            asked.append(scene_questions(scene, turns, generator, kinds))
            scenes.append(scene)
    return pictures, asked, scenes
