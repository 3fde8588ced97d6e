"""A user's own data: pictures with a JSONL or CSV file, or a set of the `datasets` library, on disk or from the hub."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from vtw_demo.errors import UserError
from vtw_demo.evaluation.samples import EvaluationData, EvaluationSample, references_of
from vtw_demo.models.image import open_picture

SUFFIXES = (".jsonl", ".csv")
# What `datasets` writes into a folder that it saves a set to.
SAVED_MARKS = ("dataset_info.json", "dataset_dict.json")


@dataclass(frozen=True)
class Columns:
    """Which fields of a row hold what. A row without the field of `kind` has no kind."""

    image: str = "image"
    question: str = "question"
    answer: str = "answer"
    kind: str = "kind"


@dataclass(frozen=True)
class SkippedRow:
    """A row that can't be used, in words that say where it is, and the reason."""

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


def read_data(
    name: str,
    columns: Columns,
    count: int | None = None,
    split: str = "test",
    config: str | None = None,
    seed: int = 0,
) -> tuple[EvaluationData, tuple[SkippedRow, ...]]:
    """A user's data, and the rows that were skipped because they can't be used.

    - `name`: a JSONL file of objects, or a CSV file with a header; a folder that holds one such file; a folder that
      `datasets` has saved a set to, or one with files that it reads; or a set's id on the hub. Paths of pictures in a
      file are relative to its folder.
    - `count`: where there are more rows, a random choice of so many that depends on `seed` alone, in the data's order.
    - `split`, `config`: of a set of `datasets`; a set without splits has none to choose.

    Raises ValueError, in a sentence for people, for data that isn't there or can't be read, a column that is missing,
    a split that isn't there, and data without a row that can be used.
    """
    if count is not None and count < 1:
        raise UserError(f"At least 1 sample is needed; {count} were asked for.")
    file = _own_file(Path(name))
    if file is not None:
        rows: Sequence[Any] = [*_rows(file, columns)]
        places = [f"{file.name}:{line}" for line, _ in rows]
        title, read = str(name), partial(_sample_of_file, rows, places, file.parent, columns)
    else:
        table = _load_table(name, split, config)
        _check_columns(name, table.column_names, columns)
        rows, title = table, f"{name}, {split}"
        read = partial(_sample_of_table, table, columns)
    order = list(range(len(rows)))
    random.Random(f"{seed} rows").shuffle(order)
    chosen = len(order) if count is None else count
    samples: dict[int, EvaluationSample] = {}
    skipped: list[tuple[int, SkippedRow]] = []
    for index in order:
        if len(samples) == chosen:
            break
        try:
            samples[index] = read(index)
        except (UserError, OSError) as error:
            place = places[index] if file is not None else f"row {index}"
            reason = f"there is no picture {error.filename}" if isinstance(error, FileNotFoundError) else str(error)
            skipped.append((index, SkippedRow(place, reason)))
    told = tuple(row for _, row in sorted(skipped, key=lambda pair: pair[0]))
    if not samples:
        listed = "".join(f" {row}." for row in told[:10])
        raise UserError(f"{name} has no row with a picture, a question and an answer.{listed}")
    return EvaluationData(title, tuple(samples[index] for index in sorted(samples))), told


def _own_file(path: Path) -> Path | None:
    """The JSONL or CSV file that a path names or holds; None where it is for `datasets` to read."""
    if path.is_file():
        return path if path.suffix.lower() in SUFFIXES else None
    if not path.is_dir() or any((path / mark).exists() for mark in SAVED_MARKS):
        return None
    found = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES)
    if len(found) > 1:
        names = ", ".join(entry.name for entry in found)
        raise UserError(f"{path} must hold one {' or '.join(SUFFIXES)} file; it holds {names}. Name the file itself.")
    return found[0] if found else None


def _rows(file: Path, columns: Columns) -> Iterator[tuple[int, Any]]:
    """Each row with its line, counted from 1; a string in place of a row is the reason why it isn't one."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not text in UTF-8.") from error
    if file.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            _check_columns(str(file), reader.fieldnames or (), columns)
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise UserError(f"{file} is no valid CSV at line {reader.line_num}: {error}.") from error
        return
    # Not splitlines(): JSON may hold other line ends than its own.
    for line, written in enumerate(text.split("\n"), start=1):
        if written.strip():
            try:
                yield line, json.loads(written)
            except json.JSONDecodeError as error:
                yield line, f"no valid JSON: {error.msg} at column {error.colno}"


def _check_columns(name: str, present: Sequence[str], columns: Columns) -> None:
    wanted = {"image": columns.image, "question": columns.question, "answer": columns.answer}
    for what, column in wanted.items():
        if column not in present:
            raise UserError(
                f"{name} has no column {column!r}; it has {', '.join(present) or 'none'}. Name the one that holds the "
                f"{what} with --{what}-column."
            )


def _sample_of_file(
    rows: Sequence[tuple[int, Any]], places: Sequence[str], folder: Path, columns: Columns, index: int
) -> EvaluationSample:
    row = rows[index][1]
    if isinstance(row, str):
        raise UserError(row)
    if not isinstance(row, dict):
        raise UserError("must be a JSON object")
    written = row.get(columns.image)
    if not isinstance(written, str) or not written.strip():
        raise UserError(f"{columns.image} must be the path of a picture; this is {written!r}")
    path = folder / written.strip()
    open_picture(path)  # now, so that a picture that can't be read is told before hours of work
    return _sample(places[index], row, columns, partial(open_picture, path))


def _sample_of_table(table: Any, columns: Columns, index: int) -> EvaluationSample:
    row = table[index]
    _picture_of(row[columns.image])
    return _sample(f"row {index}", row, columns, lambda: _picture_of(table[index][columns.image]))


def _sample(name: str, row: Mapping[str, Any], columns: Columns, open_: Callable[[], Image.Image]) -> EvaluationSample:
    question, kind = row.get(columns.question), row.get(columns.kind)
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{columns.question} must be text; this is {question!r}")
    try:
        references = references_of(row.get(columns.answer))
    except ValueError as error:
        raise UserError(f"{columns.answer}: {error}") from error
    return EvaluationSample(name, "" if kind is None else str(kind), question, references, open_)


def _picture_of(value: Any) -> Image.Image:
    """The picture in a cell: decoded, as bytes, or a path; or the only one of a list.

    Raises ValueError where there is none, or more than one.
    """
    if isinstance(value, list | tuple):
        if len(value) != 1:
            raise UserError(f"it has {len(value)} pictures; questions about one picture are asked")
        (value,) = value
    if isinstance(value, dict):  # as `datasets` stores pictures
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        try:
            value = Image.open(io.BytesIO(value))
        except OSError as error:
            raise UserError("its picture can't be read") from error
    if isinstance(value, str) and value.strip():
        return open_picture(value)
    if not isinstance(value, Image.Image):
        raise UserError("it has no picture" if value is None else f"a picture can't be a {type(value).__name__}")
    return value.convert("RGB")


def _load_table(name: str, split: str, config: str | None) -> Any:
    """A split of a set of `datasets`, its pictures decoded."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{name!r} is read with the package datasets: pip install 'vtw-demo[evaluate]'.") from error
    path = Path(name)
    try:
        if any((path / mark).exists() for mark in SAVED_MARKS):
            found = datasets.load_from_disk(name)
        elif path.is_file():
            kind = {".parquet": "parquet", ".json": "json", ".arrow": "arrow"}.get(path.suffix.lower())
            if kind is None:
                raise UserError(f"{name} must be a {', '.join(SUFFIXES)}, .json, .parquet or .arrow file")
            found = datasets.load_dataset(kind, data_files=name)
        else:
            found = datasets.load_dataset(name, config)
    # Files and servers of others fail in any way there is.
    except Exception as error:
        reason = next((line for line in str(error).strip().splitlines() if line), type(error).__name__)
        raise UserError(f"The data set {name!r} can't be read: {reason}") from error
    if not isinstance(found, dict):
        return found
    if split in found:
        return found[split]
    if len(found) == 1:
        return next(iter(found.values()))
    raise UserError(f"{name} has no split {split!r}; it has {', '.join(found)}. Name one with --split.")
