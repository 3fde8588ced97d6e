"""What is practised next: scenes as hard as they are mastered, questions as often as they are answered wrongly."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial

from PIL import Image

from vtw_demo.embedded.drawing_styles import badly_kept, random_style
from vtw_demo.embedded.easy_vqa_data import easy_vqa_pictures
from vtw_demo.embedded.phrasings import carelessly_typed, freely_asked, rephrased
from vtw_demo.embedded.questions import SHORT_ANSWER_KINDS, ask_several
from vtw_demo.embedded.scenes import COLOURS, MAXIMUM_OBJECTS, Scene, draw, random_scene
from vtw_demo.embedded.unknown_pictures import MODEST_ANSWER, photos, unknown_picture

# Shares of the questions asked in other words, and of the pictures drawn or kept otherwise than plainly.
REPHRASED, STYLED = 0.4, 0.4
# Of the questions about a scene, those in free words; and of the scenes, those to be described.
FREE, DESCRIBED = 0.25, 0.9
# Shares of the pictures that are easy-vqa's, and of those that are no drawn scene.
EASY_VQA, UNKNOWN = 0.10, 0.05
_easy_vqa, _photos = cache(partial(easy_vqa_pictures, "train")), cache(photos)
# A question's kind, its text and its answer.
Asked = tuple[str, str, str]


@dataclass
class Progress:
    """How the questions so far were answered, which decides what is practised next.

    `level` is the newest number of objects a scene has, `right` the running share of right answers about such scenes,
    `shares` those of each kind of question."""

    level: int
    right: float = 0.0
    shares: dict[str, float] = field(default_factory=dict)

    def objects(self, generator: random.Random) -> int:
        """The next scene's number of objects, the more frequent the larger it is, by even steps."""
        return max(generator.randint(1, self.level), generator.randint(1, self.level))

    def kinds(self) -> tuple[str, ...]:
        """The kinds of short answers, each more often the more often it is wrong, up to eight times."""
        wrong = {kind: 1 - self.shares.get(kind, 0.0) for kind in SHORT_ANSWER_KINDS}
        return tuple(kind for kind, share in wrong.items() for _ in range(1 + round(7 * share)))

    def record(self, answered: Sequence[tuple[str, int, float]], mastery: float) -> None:
        """A step's answers: their kinds, the scenes' numbers of objects, 0 without a scene, how right they were.

        Scenes get one object more once `mastery` of the answers about the newest are right.
        """
        for kind, _, right in answered:
            before = self.shares.get(kind, 0.0)
            self.shares[kind] = before + 0.01 * (right - before)
        newest = [right for kind, objects, right in answered if objects == self.level and kind in SHORT_ANSWER_KINDS]
        if newest:
            self.right += 0.05 * (sum(newest) / len(newest) - self.right)
        if self.right > mastery and self.level < MAXIMUM_OBJECTS:
            self.level, self.right = self.level + 1, 0.0


def practice_scene(generator: random.Random, progress: Progress) -> Scene:
    """Half of the scenes have two colours only: where a colour tells objects apart, nobody learns to use the shape."""
    colours = generator.sample(tuple(COLOURS), 2 if generator.random() < 0.5 else len(COLOURS))
    return random_scene(generator, progress.objects(generator), colours)


def scene_questions(scene: Scene, turns: int, generator: random.Random, kinds: tuple[str, ...]) -> list[Asked]:
    free = [freely_asked(scene, generator) for _ in range(round(FREE * turns))]
    described = ask_several(scene, int(generator.random() < DESCRIBED), generator, ("description",))
    questions = [*free, *described, *ask_several(scene, turns - len(free) - len(described), generator, kinds)]
    generator.shuffle(questions)
    questions = [rephrased(q, generator) if generator.random() < REPHRASED else q for q in questions]
    return [(q.kind, carelessly_typed(q.text, generator), q.answer) for q in questions]


def practice_picture(scene: Scene, generator: random.Random) -> Image.Image:
    """The scene drawn plainly or in another style, kept well or badly."""
    picture = draw(scene, style=random_style(generator)) if generator.random() < STYLED else draw(scene)
    return badly_kept(picture, generator) if generator.random() < STYLED else picture


def mixed_picture(
    progress: Progress, turns: int, generator: random.Random
) -> tuple[Image.Image, list[Asked], Scene | None]:
    """A scene, one of easy-vqa's pictures or one that is no drawn scene, what is asked about it, and the scene."""
    what, scene = generator.random(), practice_scene(generator, progress)
    if what < EASY_VQA:
        chosen = generator.choice(_easy_vqa())
        picture, questions = chosen.picture(), generator.sample(chosen.questions, len(chosen.questions))
        asked = [("easy-vqa", text, answer) for text, answer in questions]
        return badly_kept(picture, generator) if generator.random() < 0.2 else picture, asked, None
    if what < EASY_VQA + UNKNOWN:
        about_nothing = scene_questions(scene, 5, generator, SHORT_ANSWER_KINDS)
        modest = [("unknown", text, MODEST_ANSWER) for _, text, _ in about_nothing]
        return unknown_picture(_photos(), generator), modest, None
    return practice_picture(scene, generator), scene_questions(scene, turns, generator, progress.kinds()), scene
