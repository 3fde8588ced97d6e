"""People's own data: the rows of a JSONL, JSON or CSV file, or of a set of the package `datasets`."""

import csv
import io
import json
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from vtw_demo.errors import UserError
from vtw_demo.models.image import FORMATS, open_picture, shown_picture
from vtw_demo.models.question import read_question, without_control_characters

Item = TypeVar("Item")

IN_FOLDERS = (".jsonl", ".csv")
SUFFIXES = (*IN_FOLDERS, ".json")
# What `datasets` writes into a folder that it saves a set to.
SAVED_MARKS = ("dataset_info.json", "dataset_dict.json")


@dataclass(frozen=True)
class BadRow:
    """A row that can't be used: where it is, and the reason."""

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a file or set. They are read when they are asked for, their pictures anew each time: thousands take
    too much memory.

    - `rows`: fields by column; a UserError in place of a row says why it isn't one.
    - `places`: of each row, for people; `names`: of each row.
    - `folder`: what pictures' paths are relative to.
    """

    title: str
    rows: Sequence[Any]
    places: Sequence[str]
    names: Sequence[str]
    folder: Path

    def usable(
        self, read: Callable[[int], Item], order: Iterable[int] | None = None, count: int | None = None, strict=False
    ) -> tuple[dict[int, Item], tuple[BadRow, ...]]:
        """What `read` gives for rows, by their number in ascending order, and the bad ones: where it raises UserError.

        - `order`: in which they are read, until there are `count`; all by default.
        - `strict`: refuse a bad row.
        """
        found: dict[int, Item] = {}
        reasons: dict[int, str] = {}
        for index in range(len(self.rows)) if order is None else order:
            if len(found) == count:
                break
            try:
                found[index] = read(index)
            except (UserError, OSError) as error:
                reasons[index] = str(error)
        bad = tuple(BadRow(self.places[index], reasons[index]) for index in sorted(reasons))
        listed = "; ".join(map(str, bad[:10])) + (f"; and {len(bad) - 10} more" if len(bad) > 10 else "")
        if strict and bad:
            raise UserError(
                f"{self.title} has {len(bad)} bad rows: {listed}. Mend them, or leave out --strict to skip them."
            )
        if not found:
            raise UserError(f"{self.title} has no row that can be used{': ' + listed if bad else ''}.")
        return dict(sorted(found.items())), bad

    def fields(self, index: int) -> Mapping[str, Any]:
        row = self.rows[index]
        if isinstance(row, UserError):
            raise row
        if not isinstance(row, Mapping):
            raise UserError("must be a JSON object")
        if None in row:  # where csv puts what is left over
            raise UserError("has more cells than the header: put a text that holds a comma into quotes")
        return row

    def question(self, index: int, column: str) -> str:
        """As a model can be asked it."""
        value = self.fields(index).get(column)
        if value is None:
            raise UserError(f"{column} is missing")
        if not isinstance(value, str):
            raise UserError(f"{column} must be text; this is {reprlib.repr(value)}")
        try:
            return read_question(value)
        except UserError as error:
            raise UserError(f"{column} is empty") from error

    def picture(self, index: int, column: str) -> Callable[[], Image.Image]:
        """What opens the picture. It is opened once now: one that can't be read is told before hours of work."""

        def opened() -> Image.Image:
            return _picture(self.fields(index).get(column), column, self.folder)

        opened()
        return opened


def find_file(path: Path) -> Path | None:
    """The file of `SUFFIXES` that a path names, or that of `IN_FOLDERS` which it holds; None where there is none."""
    if path.is_file():
        return path if path.suffix.lower() in SUFFIXES else None
    if not path.is_dir() or any((path / mark).exists() for mark in SAVED_MARKS):
        return None
    found = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in IN_FOLDERS)
    if len(found) > 1:
        names = ", ".join(entry.name for entry in found)
        raise UserError(f"{path} must hold one {' or '.join(IN_FOLDERS)} file; it holds {names}. Name the file itself.")
    return found[0] if found else None


def read_file(file: Path, columns: Sequence[str], advice: str) -> Rows:
    """The rows of a JSONL file or a JSON array of objects, or of a CSV file with a header."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not text in UTF-8.") from error
    if file.suffix.lower() == ".csv":
        numbered, unit = [*_csv_rows(file, text, columns, advice)], "line"
    elif file.suffix.lower() == ".json" and text.lstrip().startswith("["):
        array = _parsed(text)
        if isinstance(array, UserError):
            raise UserError(f"{file} is {array}.") from array
        numbered, unit = [*enumerate(array, start=1)], "row"
    else:
        # Not splitlines(): JSON may hold other line ends than its own.
        lines = enumerate(text.split("\n"), start=1)
        numbered, unit = [(line, _parsed(written)) for line, written in lines if written.strip()], "line"
    return Rows(
        str(file),
        [row for _, row in numbered],
        [f"{unit} {number}" for number, _ in numbered],
        [f"{file.name}:{number}" for number, _ in numbered],
        file.parent,
    )


def read_set(name: str, split: str, config: str | None, columns: Sequence[str], advice: str) -> Rows:
    """A split of a set of the package `datasets`: in a folder that it has saved, a file, or on the hub."""
    table = _load(name, config)
    if isinstance(table, dict):  # a set without splits has none to choose
        if split not in table and len(table) != 1:
            raise UserError(f"{name} has no split {split!r}; it has {', '.join(table)}. Name one with --split.")
        table = table[split if split in table else next(iter(table))]
    _check_columns(name, table.column_names, columns, advice)
    path = Path(name)
    places = [f"row {index}" for index in range(len(table))]
    return Rows(f"{name}, {split}", table, places, places, path.parent if path.is_file() else Path())


def _csv_rows(file: Path, text: str, columns: Sequence[str], advice: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        _check_columns(str(file), reader.fieldnames or (), columns, advice)
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{file} is no valid CSV at line {reader.line_num}: {error}.") from error


def _parsed(written: str) -> Any:
    """What JSON says, or a UserError where it is none."""
    try:
        return json.loads(written)
    except json.JSONDecodeError as error:
        return UserError(f"no valid JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # a number of too many digits, brackets in too many brackets
        return UserError(f"no valid JSON: {error}")


def _check_columns(name: str, present: Sequence[str], columns: Sequence[str], advice: str) -> None:
    for column in columns:
        if column not in present:
            raise UserError(f"{name} has no column {column!r}; it has {', '.join(present) or 'none'}. {advice}")


def _picture(value: Any, column: str, folder: Path) -> Image.Image:
    """The picture in a cell: decoded, as bytes, or a path; or the only one of a list."""
    if isinstance(value, list | tuple):
        if len(value) != 1:
            raise UserError(f"it has {len(value)} pictures; questions about one picture are asked")
        (value,) = value
    if isinstance(value, dict):  # as `datasets` stores pictures
        value = value.get("bytes") or value.get("path")
    if value is None or value == "":
        raise UserError(f"{column} is missing")
    if isinstance(value, bytes):
        try:
            value = Image.open(io.BytesIO(value), formats=FORMATS)
            value.load()
        except Exception as error:  # Pillow's readers raise a dozen kinds for what is cut short or broken
            raise UserError("its picture can't be read") from error
    if isinstance(value, Image.Image):
        return shown_picture(value)
    if not isinstance(value, str):
        raise UserError(f"{column} must be a picture or the path of one; this is {reprlib.repr(value)}")
    path = folder / without_control_characters(value).strip()
    try:
        return open_picture(path)
    except FileNotFoundError as error:
        raise UserError(f"there is no picture {path}") from error
    except OSError as error:
        raise UserError(f"the picture {reprlib.repr(value)} can't be read: {error.strerror or error}") from error


def _load(name: str, config: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{name!r} is read with the package datasets: pip install 'vtw-demo[evaluate]'.") from error
    path = Path(name)
    try:
        if any((path / mark).exists() for mark in SAVED_MARKS):
            return datasets.load_from_disk(name)
        if path.is_file():
            kind = {".parquet": "parquet", ".arrow": "arrow"}.get(path.suffix.lower())
            if kind is None:
                raise UserError(f"{name} must be a {', '.join(SUFFIXES)}, .parquet or .arrow file")
            return datasets.load_dataset(kind, data_files=name)
        return datasets.load_dataset(name, config)
    # Files and servers of others fail in any way there is.
    except Exception as error:
        reason = next((line for line in str(error).strip().splitlines() if line), type(error).__name__)
        raise UserError(f"The data set {name!r} can't be read: {reason}") from error
