"""Pictures with questions to calibrate on: fresh scenes, easy-vqa, or a user's own file."""

from __future__ import annotations

import csv
import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vtw_demo.embedded.questions import SHORT_ANSWER_KINDS, ask_several
from vtw_demo.embedded.scenes import draw, random_scene
from vtw_demo.errors import UserError
from vtw_demo.models.image import open_picture

SUFFIXES = (".jsonl", ".csv")
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

    Raises ValueError for an empty question, and for no tokens.
    """

    name: str
    picture: Image.Image
    question: str
    answer_tokens: int = 1

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise UserError(f"The question of {self.name} is empty.")
        if self.answer_tokens < 1:
            raise UserError(f"At least 1 token of the answer is measured; {self.answer_tokens} were asked for.")

    @property
    def fingerprint(self) -> str:
        """Equal for samples with the same picture, question and tokens."""
        said = f"{self.picture.mode} {self.picture.size} {self.question.strip()}"
        if self.answer_tokens > 1:
            said += f" {self.answer_tokens}"
        return hashlib.sha256(said.encode() + self.picture.tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class BadRow:
    """A row of a data file that can't be used, with its line, counted from 1, and the reason."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


def embedded_samples(count: int, seed: int = 0) -> tuple[Sample, ...]:
    """`count` samples that need no file: fresh scenes and, where the package easy-vqa is installed, every other one
    from its train split. Every fourth asks to describe a scene and is measured over the whole answer: the first token
    of a description says nothing about the picture, and is the same long before the rest can do without it.

    Raises ValueError for a count below 1.
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

    - `path`: a JSONL file with objects, or a CSV file with a header, that have an `image` (a path, relative to the
      file's folder) and a `question`; or a folder that holds one such file.
    - `count`: where there are more good rows, a random choice that depends on `seed` alone.
    - `strict`: refuse data with a bad row.
    - `answer_tokens`: of each sample.

    Raises ValueError, in a sentence for people, for a path without such a file, a file that isn't text in UTF-8, a
    CSV header without these columns, data without a good row, and with `strict` for any bad row.
    """
    _check_count(count)
    file = _data_file(path)
    good: list[tuple[int, Path, str]] = []
    bad: list[BadRow] = []
    for line, row in _rows(file):
        try:
            picture, question = _checked(row, file.parent)
            open_picture(picture)
            good.append((line, picture, question))
        except (UserError, OSError) as error:
            reason = f"there is no picture {error.filename}" if isinstance(error, FileNotFoundError) else str(error)
            bad.append(BadRow(line, reason))
    listed = "; ".join(map(str, bad[:10])) + (f"; and {len(bad) - 10} more" if len(bad) > 10 else "")
    if strict and bad:
        raise UserError(f"{file} has {len(bad)} bad rows: {listed}. Mend them, or leave out --strict to skip them.")
    if not good:
        raise UserError(f"{file} has no row with a picture and a question" + (f": {listed}." if bad else "."))
    chosen = sorted(random.Random(seed).sample(range(len(good)), min(count, len(good))))
    samples = (Sample(f"{file.name}:{good[i][0]}", open_picture(good[i][1]), good[i][2], answer_tokens) for i in chosen)
    return tuple(samples), tuple(bad)


def _check_count(count: int) -> None:
    if count < 1:
        raise UserError(f"At least 1 sample is needed; {count} were asked for.")


def _data_file(path: Path) -> Path:
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(f"{path} must be a {' or '.join(SUFFIXES)} file with the columns {', '.join(COLUMNS)}.")
        return path
    if not path.is_dir():
        raise UserError(f"There is no {path}: name a folder, or a {' or '.join(SUFFIXES)} file.")
    found = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES)
    if len(found) != 1:
        names = ", ".join(entry.name for entry in found) or "none"
        raise UserError(f"{path} must hold one {' or '.join(SUFFIXES)} file; it holds {names}. Name the file itself.")
    return found[0]


def _rows(file: Path) -> Iterator[tuple[int, Any]]:
    """Each row with its line; a string in place of a row is the reason why it isn't one."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not text in UTF-8.") from error
    if file.suffix.lower() == ".csv":
        reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
        try:
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise UserError(
                    f"{file} must have a header with {', '.join(COLUMNS)}; {', '.join(missing)} is missing."
                )
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise UserError(f"{file} is no valid CSV at line {reader.line_num}: {error}.") from error
        return
    for line, written in enumerate(text.splitlines(), start=1):
        if written.strip():
            try:
                yield line, json.loads(written)
            except json.JSONDecodeError as error:
                yield line, f"no valid JSON: {error.msg} at column {error.colno}"


def _checked(row: Any, folder: Path) -> tuple[Path, str]:
    if isinstance(row, str):
        raise UserError(row)
    if not isinstance(row, dict):
        raise UserError("must be a JSON object")
    for column in COLUMNS:
        value = row.get(column)
        if value is not None and not isinstance(value, str):
            raise UserError(f"{column} must be text; this is {value!r}")
        if not (value or "").strip():
            raise UserError(f"{column} is missing")
    return folder / row["image"].strip(), row["question"]
