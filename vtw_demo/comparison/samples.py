"""Pictures with questions to calibrate on: fresh scenes, easy-vqa, or a user's own file."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vtw_demo.comparison.data_files import IN_FOLDERS, SUFFIXES, BadRow, find_file, read_file
from vtw_demo.embedded.questions import SHORT_ANSWER_KINDS, ask_several
from vtw_demo.embedded.scenes import draw, random_scene
from vtw_demo.errors import UserError

COLUMNS = ("image", "question")
EMBEDDED_DATA = "scenes drawn by the demo, descriptions of some, and easy-vqa where it is installed"
# A description of the largest scene has 80 of the embedded model's tokens.
DESCRIPTION_TOKENS = 96


@dataclass(frozen=True)
class Sample:
    """A picture and a question about it, and how much of the answer is measured.

    - `name`: where it is from.
    - `answer_tokens`: the divergence is the mean over so many tokens of the model's own answer; 1, as in the paper, is
      the first one alone.
    """

    name: str
    picture: Image.Image
    question: str
    answer_tokens: int = 1

    def __post_init__(self) -> None:
        if self.answer_tokens < 1:
            raise UserError(f"At least 1 token of the answer is measured; {self.answer_tokens} were asked for.")

    @property
    def fingerprint(self) -> str:
        """Equal for samples with the same picture, question and tokens."""
        said = f"{self.picture.mode} {self.picture.size} {self.question.strip()}"
        if self.answer_tokens > 1:
            said += f" {self.answer_tokens}"
        return hashlib.sha256(said.encode() + self.picture.tobytes()).hexdigest()[:16]


def embedded_samples(count: int, seed: int = 0) -> tuple[Sample, ...]:
    """`count` samples that need no file: fresh scenes and, where the package easy-vqa is installed, every other one
    from its train split. Every fourth asks to describe a scene and is measured over the whole answer: the first token
    of a description says nothing about the picture, and is the same long before the rest can do without it.
    """
    _check_count(count)
    generator = random.Random(f"calibration {seed}")
    samples = []
    try:
        from vtw_demo.embedded.easy_vqa_data import easy_vqa_pictures

        pictured = easy_vqa_pictures("train")
    except ImportError:
        pictured = []
    for number in range(count):
        if pictured and number % 2:
            chosen = generator.choice(pictured)
            question = generator.choice(chosen.questions)[0]
            samples.append(Sample(f"easy-vqa {chosen.path.name}", chosen.picture(), question))
        else:
            scene = random_scene(generator, generator.randint(1, 4))
            described = number % 4 == 2
            (asked,) = ask_several(scene, 1, generator, ("description",) if described else SHORT_ANSWER_KINDS)
            samples.append(Sample(f"scene {number}", draw(scene), asked.text, DESCRIPTION_TOKENS if described else 1))
    return tuple(samples)


def read_samples(
    path: Path, count: int, strict: bool = False, seed: int = 0, answer_tokens: int = 1
) -> tuple[tuple[Sample, ...], tuple[BadRow, ...]]:
    """Up to `count` samples from a user's data, in its order, and the rows that were skipped.

    - `path`: a file of `vtw_demo.comparison.data_files` whose rows have an `image` (a path, relative to the file's
      folder) and a `question`; or a folder that holds one such file.
    - `count`: where there are more good rows, a random choice that depends on `seed` alone.
    - `strict`: refuse data with a bad row.
    - `answer_tokens`: of each sample.
    """
    _check_count(count)
    file = find_file(path)
    if file is None:
        suffixes = " or ".join(SUFFIXES)
        if not path.exists():
            raise UserError(f"There is no {path}: name a folder, or a {suffixes} file.")
        raise UserError(f"{path} must be a {suffixes} file, or a folder that holds one {' or '.join(IN_FOLDERS)} file.")
    rows = read_file(file, COLUMNS, f"Its header must have the columns {' and '.join(COLUMNS)}.")

    def read(index: int) -> tuple[str, str, Callable[[], Image.Image]]:
        return rows.names[index], rows.question(index, "question"), rows.picture(index, "image")

    found, bad = rows.usable(read, strict=strict)
    good = [*found.values()]
    chosen = (good[i] for i in sorted(random.Random(seed).sample(range(len(good)), min(count, len(good)))))
    return tuple(Sample(name, opened(), question, answer_tokens) for name, question, opened in chosen), bad


def _check_count(count: int) -> None:
    if count < 1:
        raise UserError(f"At least 1 sample is needed; {count} were asked for.")
