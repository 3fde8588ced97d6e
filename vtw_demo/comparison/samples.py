"""Pictures with questions to calibrate on: fresh scenes, easy-vqa, or a user's own file."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vtw_demo.comparison.data_files import read_table
from vtw_demo.comparison.data_rows import Columns, read_rows, tell_skipped
from vtw_demo.embedded.questions import SHORT_ANSWER_KINDS, ask_several
from vtw_demo.embedded.scenes import draw, random_scene
from vtw_demo.errors import UserError
from vtw_demo.models.devices import is_out_of_memory
from vtw_demo.models.vision_language_model import VisionLanguageModel

EMBEDDED_DATA = "scenes drawn by the demo, descriptions of some, and easy-vqa where it is installed"
DESCRIPTION_TOKENS = 96  # a description of the largest scene has 80 of the embedded model's


@dataclass(frozen=True)
class Sample:
    name: str  # where it is from
    picture: Image.Image
    question: str
    answer_tokens: int = 1  # of the model's own answer, over which divergence is the mean; 1, the first, in the paper

    def __post_init__(self) -> None:
        if self.answer_tokens < 1:
            raise UserError(f"At least 1 token of the answer is measured; {self.answer_tokens} were asked for.")

    @property
    def fingerprint(self) -> str:
        """Equal for samples with the same picture, question and tokens."""
        tokens = f" {self.answer_tokens}" if self.answer_tokens > 1 else ""
        said = f"{self.picture.mode} {self.picture.size} {self.question.strip()}{tokens}"
        return hashlib.sha256(said.encode(errors="surrogatepass") + self.picture.tobytes()).hexdigest()[:16]


def embedded_samples(count: int, seed: int = 0) -> tuple[Sample, ...]:
    """`count` samples that need no file: fresh scenes and, where easy-vqa is installed, every other one from its train
    split. Every fourth asks to describe a scene and is measured over the whole answer, of which the first token says
    nothing about the picture."""
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
    name: str | Path,
    count: int,
    strict: bool = False,
    seed: int = 0,
    answer_tokens: int = 1,
    columns: Columns | None = None,
    split: str = "train",
    config: str | None = None,
) -> tuple[tuple[Sample, ...], tuple[str, ...]]:
    """Up to `count` samples of a user's data (`read_table`), and what was skipped (`read_rows`)."""
    _check_count(count)
    rows, bad = read_rows(read_table(str(name), split, config), columns or Columns(), count, seed, strict)
    return tuple(Sample(row.name, row.open(), row.question, answer_tokens) for row in rows), bad


def askable(
    vlm: VisionLanguageModel, title: str, samples: Sequence[Any], strict: bool, new_tokens: int = 1
) -> tuple[Any, ...]:
    """Those of `samples`, each a `Sample` or a `DataSample`, that fit into a model's context with an answer of so many
    tokens, and don't make its processor fail. The others are logged, or with `strict` refused."""
    good, bad = [], []
    for sample in samples:
        try:
            picture = sample.picture if isinstance(sample, Sample) else sample.open()
            length = sample.answer_tokens if isinstance(sample, Sample) else new_tokens
            vlm.check_length(vlm.prompt(picture, sample.question).length, length)
            good.append(sample)
        except Exception as error:  # models' processors fail at a picture in any way there is
            if is_out_of_memory(error):
                raise
            is_told = isinstance(error, UserError | OSError)
            bad.append(f"{sample.name}: {error if is_told else f'the processor fails, {error!r:.200}'}")
    tell_skipped(title, len(good), bad, strict)
    return tuple(good)


def _check_count(count: int) -> None:
    if count < 1:
        raise UserError(f"At least 1 sample is needed; {count} were asked for.")
