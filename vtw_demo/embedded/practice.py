"""What is practised next: scenes as hard as they are mastered, questions as often as they are answered wrongly."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from vtw_demo.embedded.easy_vqa_data import PicturedQuestions
from vtw_demo.embedded.questions import SHORT_ANSWER_KINDS, ask_several
from vtw_demo.embedded.samples import shuffled
from vtw_demo.embedded.scenes import COLOURS, MAXIMUM_OBJECTS, Scene, draw, random_scene


@dataclass
class Curriculum:
    """More objects a scene once those before are mastered: `mastery` of the newest level's answers right."""

    mastery: float
    level: int = 1
    right: float = 0.0
    history: list[tuple[int, int]] = field(default_factory=list)

    def objects(self, generator: random.Random) -> int:
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

    def figures(self) -> dict[str, str]:
        return {kind: f"{share:.2f}" for kind, share in sorted(self.smooth.items())}


def practice_scene(generator: random.Random, curriculum: Curriculum) -> Scene:
    """Half of the scenes have two colours only: where a colour tells objects apart, nobody learns to use the shape."""
    colours = generator.sample(tuple(COLOURS), 2 if generator.random() < 0.5 else len(COLOURS))
    return random_scene(generator, curriculum.objects(generator), colours)


def scene_questions(
    scene: Scene, turns: int, generator: random.Random, kinds: tuple[str, ...]
) -> list[tuple[str, str, str]]:
    questions = ask_several(scene, turns, generator, kinds)
    for number, (kind, share) in enumerate((("description", 0.4), ("listing", 0.6), ("listing", 0.4))):
        if generator.random() < share:
            questions[number] = ask_several(scene, 1, generator, (kind,))[0]
    generator.shuffle(questions)
    return [(question.kind, question.text, question.answer) for question in questions]


def mixed_pictures(
    pictured: Sequence[PicturedQuestions],
    curriculum: Curriculum,
    kinds: tuple[str, ...],
    generator: random.Random,
    count: int,
    turns: int,
) -> tuple[list[Image.Image], list[list[tuple[str, str, str]]], list[Scene | None]]:
    """`count` pictures, a quarter of them easy-vqa's, what is asked about each in `turns` questions, and each one's
    scene, None for easy-vqa."""
    pictures: list[Image.Image] = []
    asked: list[list[tuple[str, str, str]]] = []
    scenes: list[Scene | None] = []
    for _ in range(count):
        if generator.random() < 0.25:
            chosen = generator.choice(pictured)
            pictures.append(chosen.picture())
            asked.append(shuffled(generator, chosen.questions))
            scenes.append(None)
        else:
            scene = practice_scene(generator, curriculum)
            pictures.append(draw(scene))
            asked.append(scene_questions(scene, turns, generator, kinds))
            scenes.append(scene)
    return pictures, asked, scenes
