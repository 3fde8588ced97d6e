"""People's own data: the cells of a JSONL, JSON, CSV or TSV file, or of a set of the package `datasets`."""

import csv
import functools
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtw_demo.errors import UserError

TEXT = (".jsonl", ".ndjson", ".csv", ".tsv", ".json")
SUFFIXES = (*TEXT, ".parquet", ".arrow")
SAVED_MARKS = ("dataset_info.json", "dataset_dict.json")  # what `datasets` writes where it saves a set
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}


@dataclass(frozen=True, eq=False)
class Table:
    """Rows whose cells are read when they are asked for: pictures of thousands take too much memory."""

    title: str
    columns: Sequence[str]  # their names, as they are written
    places: Sequence[str]  # of each row, for people
    cell: Callable[[int, str], Any]  # of a row's number and a column's name; raises UserError for what is no row
    folder: Path  # what pictures' paths are relative to


def read_table(name: str, split: str, config: str | None = None) -> Table:
    """A file of `SUFFIXES`, or a folder that holds one; or a set of `datasets`: in a folder that it has saved or
    recognises, or on the hub, of which `config` and `split` are read."""
    path = Path(name)
    if path.is_file() and path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} must be a {', '.join(SUFFIXES)} file, or a folder.")
    if not path.exists() and (path.suffix.lower() in SUFFIXES or path.is_absolute()):
        raise UserError(f"There is no {path}: name a file, a folder, or a set of the package datasets.")
    file = _find_file(path)
    return _read_set(name, split, config) if file is None else _read_file(name, file)


def _find_file(path: Path) -> Path | None:
    """The file of text that a path names or holds; None where `datasets` is to read it."""
    if any((path / mark).exists() for mark in SAVED_MARKS):
        return None
    entries = sorted(path.iterdir()) if path.is_dir() else [path]
    found = [e for e in entries if e.suffix.lower() in TEXT and not e.name.startswith("._") and e.is_file()]
    # Beside the rows there may be a picture set's own list of files, and settings in JSON.
    listing = [entry for entry in found if entry.stem == "metadata"]
    chosen = listing or [entry for entry in found if entry.suffix.lower() != ".json"] or found
    if len(chosen) > 1:
        names = ", ".join(entry.name for entry in chosen)
        raise UserError(f"{path} must hold one file of rows; it holds {names}. Name the file itself.")
    return chosen[0] if chosen else None


def _read_file(name: str, file: Path) -> Table:
    content = file.read_bytes()
    encoding = json.detect_encoding(content)
    try:
        # Bytes that are no UTF-8 become halves of pairs, which no text has: their rows alone are bad.
        text = content.decode(encoding, "surrogateescape" if encoding.startswith("utf-8") else "surrogatepass")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not text in UTF-8 or UTF-16.") from error
    if not text.strip():
        raise UserError(f"{file} is empty.")
    unit, numbered = (_delimited if file.suffix.lower() in (".csv", ".tsv") else _json)(file, text)
    columns = dict.fromkeys(key for _, row in numbered if isinstance(row, dict) for key in row)

    def cell(index: int, column: str) -> Any:
        row = numbered[index][1]
        if isinstance(row, dict):
            return row.get(column)
        raise row if isinstance(row, UserError) else UserError("must be a JSON object")

    # A name on disk may hold what no file in UTF-8 can.
    title, shown = (one.encode(errors="backslashreplace").decode() for one in (name, file.name))
    return Table(title, [*columns], [f"{shown}, {unit} {number}" for number, _ in numbered], cell, file.parent)


def _json(file: Path, text: str) -> tuple[str, list[tuple[int, Any]]]:
    """What is numbered, and the rows, numbered: a UserError for one that can't be read."""
    whole, is_lines = _parsed(text), file.suffix.lower() != ".json"
    if isinstance(whole, UserError):
        # Not splitlines(): JSON may hold other line ends than its own.
        lines = enumerate(io.StringIO(text, newline=None), start=1)
        rows = [(number, _parsed(line)) for number, line in lines if line.strip()]
        if is_lines or any(isinstance(row, dict) for _, row in rows):
            return "line", rows
        raise UserError(f"{file} is {whole}.") from whole
    if isinstance(whole, dict) and not is_lines and "image" not in whole:
        lists = [value for value in whole.values() if isinstance(value, list)]
        whole = lists[0] if len(lists) == 1 else whole
    return ("row", [*enumerate(whole, start=1)]) if isinstance(whole, list) else ("line", [(1, whole)])


def _parsed(written: str) -> Any:
    """What JSON says, or a UserError where it is none."""
    try:
        return json.loads(written)
    except json.JSONDecodeError as error:
        return UserError(f"no valid JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # a number of too many digits, brackets in too many brackets
        return UserError(f"no valid JSON: {error}")


def _delimited(file: Path, text: str) -> tuple[str, list[tuple[int, Any]]]:
    """As `_json`; the header says what separates cells."""
    csv.field_size_limit(2**31 - 1)  # for pictures in base64
    lines = list(io.StringIO(text, newline=""))
    lines[0] = "\n" if lines[0].lower().startswith("sep=") else lines[0]  # Excel's own
    headers: dict[str, Any] = {separator: next(_split(lines, separator), (1, []))[1] for separator in SEPARATORS}
    separator = max(headers, key=lambda one: len(headers[one]) if isinstance(headers[one], list) else 0)
    header = headers[separator]
    if isinstance(header, UserError):
        raise UserError(f"{file} has a header that is {header}.") from header
    columns = [name.strip() for name in header]
    if twice := [name for name in columns if name and columns.count(name) > 1]:
        raise UserError(f"{file} has several columns called {twice[0][:40]!r}: give each a name of its own.")
    told = f"has more cells than the header: put a text that holds a {SEPARATORS[separator]} into quotes"
    rows: list[tuple[int, Any]] = []
    for number, row in _split(lines, separator):
        if isinstance(row, list):
            row = dict(zip(columns, row, strict=False)) if len(row) <= len(columns) else UserError(told)
        rows.append((number, row))
    return "line", rows[1:]


def _split(lines: Sequence[str], separator: str) -> Iterator[tuple[int, Any]]:
    """The first line of each row that isn't blank, and its cells."""
    start = 0
    while start < len(lines):
        first, reader = start, csv.reader(lines[start:], delimiter=separator, skipinitialspace=True, strict=True)
        try:
            for cells in reader:
                if "".join(cells).strip():
                    yield first + 1, cells
                first = start + reader.line_num
            return
        except csv.Error as error:
            yield first + 1, UserError(f"no valid CSV: {error}")
            start = first + 1


def _read_set(name: str, split: str, config: str | None) -> Table:
    table, path = _load(name, config), Path(name)
    if isinstance(table, dict):  # a set without splits has none to choose
        if split not in table and len(table) != 1:
            raise UserError(f"{name} has no split {split!r}; it has {', '.join(table)}. Name one with --split.")
        table = table[split if split in table else next(iter(table))]
    # As Arrow has it: `datasets` would decode the pictures, its own way.
    column_of = functools.cache(table.with_format("arrow").select_columns)

    def cell(index: int, column: str) -> Any:
        value, names = column_of(column)[index][column][0].as_py(), getattr(table.features[column], "names", None)
        return names[value] if names and isinstance(value, int) and value >= 0 else value

    places = [f"row {index}" for index in range(len(table))]
    return Table(f"{name}, {split}", table.column_names, places, cell, path.parent if path.is_file() else path)


def _load(name: str, config: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        needed = "The package datasets isn't installed: pip install datasets."
        raise UserError(f"{name!r} is no {', '.join(TEXT)} file, and no folder of one. {needed}") from error
    path = Path(name)
    try:
        if any((path / mark).exists() for mark in SAVED_MARKS):
            return datasets.load_from_disk(name)
        if path.is_file():
            return datasets.load_dataset(path.suffix.lower()[1:], data_files=name)
        return datasets.load_dataset(name, config)
    # Files and servers of others fail in any way there is.
    except Exception as error:
        reason = next((line for line in str(error).strip().splitlines() if line), type(error).__name__)
        raise UserError(f"The data set {name!r} can't be read: {reason}") from error
