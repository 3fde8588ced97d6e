"""What the rows of people's own data ask: a picture, a question, and the right answers; and the options for it."""

import argparse
import base64
import logging
import math
import random
import re
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image

from vtw_demo.comparison.data_files import SUFFIXES, Table
from vtw_demo.errors import UserError
from vtw_demo.files import data_beside
from vtw_demo.formats import count as counted
from vtw_demo.models.image import open_picture
from vtw_demo.models.question import read_question, without_control_characters

logger = logging.getLogger(__name__)

# What people call a column, by what it holds, without spaces, signs and capitals.
TURNS = ("conversations", "conversation", "messages")
NAMES = data_beside(__file__, "column_names.toml")
ASKS, ANSWERS = ("human", "user"), ("gpt", "assistant", "model")
PLACEHOLDER = re.compile(r"^(\s*<image>)+|(<image>\s*)+$")  # where LLaVA's prompts have the picture
LONGEST_PATH, LONGEST_PICTURE = 4096, 100_000_000
FILES = (
    f"a file ({', '.join(SUFFIXES)}) whose rows have a picture (a path, relative to the file), a question and what "
    "else is asked for; a folder that holds one; or a set of the package datasets, on disk or from the hub"
)


@dataclass(frozen=True)
class Columns:
    """Which columns hold what; None is the one whose name of `NAMES` says so."""

    image: str | None = None
    question: str | None = None
    answer: str | None = None
    kind: str | None = None


@dataclass(frozen=True)
class DataSample:
    """One question about one picture, which is opened when it is asked about: thousands take too much memory."""

    name: str  # where it is from
    kind: str  # of question, "" where the data tells none
    question: str
    references: tuple[str, ...]  # the right answers; none where they weren't asked for
    open: Callable[[], Image.Image]


def add_data_arguments(parser: argparse.ArgumentParser, roles: Sequence[str], split: str) -> None:
    """Add what chooses the columns of `roles`, of `NAMES`, and what else `read_rows` takes; `split` is the default."""
    for role in roles:
        names = ", ".join(NAMES[role])
        parser.add_argument(f"--{role}-column", metavar="NAME", help=f"of --data; by default the one called {names}")
    parser.add_argument("--split", default=split, help="of a set of the package datasets")
    parser.add_argument("--config", help="of a set of the package datasets that has several")
    parser.add_argument("--strict", action="store_true", help="refuse data with a bad row instead of skipping it")


def chosen_columns(options: argparse.Namespace) -> Columns:
    return Columns(*(getattr(options, f"{role}_column", None) for role in NAMES))


def read_rows(
    table: Table, columns: Columns, count: int | None, seed: int = 0, strict: bool = False, answered: bool = False
) -> tuple[tuple[DataSample, ...], tuple[str, ...]]:
    """The rows that can be used, in their order, and the bad ones, each with its reason.

    - `count`: of more good rows, a random choice that depends on `seed` alone. Each one's picture is opened once: one
      that can't be read is told before hours of work.
    - `strict`: refuse data with a bad row. `answered`: rows have a right answer, and may have a kind.
    """
    shows, asks = _column(table, "image", columns.image), _column(table, "question", columns.question)
    answers = _column(table, "answer", columns.answer) if answered else ""
    kinds = _column(table, "kind", columns.kind, is_needed=columns.kind is not None) if answered else ""
    texts: dict[int, tuple[str, str, tuple[str, ...]]] = {}
    reasons: dict[int, str] = {}
    for index in range(len(table.places)):
        try:
            question = _text(_said(table.cell(index, asks), asks, ASKS), asks)
            references = references_of(table.cell(index, answers), answers) if answered else ()
            kind = table.cell(index, kinds) if kinds else None
            texts[index] = "" if _is_missing(kind) else _characters(str(kind), kinds), question, references
        except UserError as error:
            reasons[index] = str(error)
    order, found = list(texts), dict[int, DataSample]()
    random.Random(f"{seed} rows").shuffle(order)
    for index in order:
        if len(found) == count:
            break
        opened = partial(_picture, table, index, shows)
        try:
            opened()
            found[index] = DataSample(table.places[index], *texts[index], opened)
        except (UserError, OSError) as error:
            reasons[index] = str(error)
    bad = tuple(f"{table.places[index]}: {reasons[index]}" for index in sorted(reasons))
    tell_skipped(table.title, len(found), bad, strict)
    return tuple(found[index] for index in sorted(found)), bad


def tell_skipped(title: str, good: int, bad: Sequence[str], strict: bool) -> None:
    """Log the bad rows. Raise UserError where there is no good one, or for `strict` a bad one."""
    listed = "; ".join(row.rstrip(".") for row in bad[:10]) + (f"; and {len(bad) - 10} more" if len(bad) > 10 else "")
    if strict and bad:
        raise UserError(
            f"{title} has {counted(len(bad), 'bad row')}: {listed}. Mend them, or leave out --strict to skip them."
        )
    if not good:
        raise UserError(f"{title} has no row that can be used{': ' + listed if bad else ''}.")
    for row in bad:
        logger.warning("skipped %s", row)


def references_of(value: Any, column: str) -> tuple[str, ...]:
    """The right answers in a cell: one, or a list, in VQA of objects with an `answer`; or a conversation's first."""
    value, found = _said(value, column, ANSWERS), []
    for item in value if isinstance(value, list) else [value]:
        written = item.get("answer") if isinstance(item, dict) else item
        if isinstance(written, bool):
            written = "yes" if written else "no"
        elif isinstance(written, float) and written.is_integer():  # tables with gaps hold whole numbers so
            written = int(written)
        is_number = isinstance(written, int) or (isinstance(written, float) and math.isfinite(written))
        found.append(_text(str(written) if is_number else written, column))
    if not found:
        raise UserError(f"{column} is missing")
    return tuple(found)


def _column(table: Table, role: str, given: str | None, is_needed: bool = True) -> str:
    """The column that holds the `role`, one of `NAMES`; "" where there is none and none is needed."""
    wanted = NAMES[role] if given is None else (_small(given),)
    found = [name for name in table.columns if name == given]
    found = found or [name for name in table.columns if _small(name) in wanted]
    if len(found) > 1 and (usual := [name for name in found if _small(name) == role]):
        logger.warning("%s: of %s the %s is read from %s.", table.title, _listed(found), role, _listed(usual))
        found = usual
    if len(found) == 1 or not (is_needed and table.columns):  # without any, no row can be read, and each has its reason
        return found[0] if found else ""
    several, none = f"several columns that may hold the {role}", f"no column {reprlib.repr(given or role)}; it has"
    said = f"{several}: {_listed(found)}" if found else f"{none} {_listed(table.columns)}"
    raise UserError(f"{table.title} has {said}. Name the one to read with --{role}-column.")


def _small(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())


def _listed(names: Sequence[str]) -> str:
    return ", ".join([*(name[:40] for name in names[:20]), *(["…"] if len(names) > 20 else [])])


def _is_missing(value: Any) -> bool:
    """None, or NaN: how tables write that there is nothing."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _characters(value: str, column: str) -> str:
    """Without control characters; halves of pairs are no text at all."""
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError(f"{column} is not text in UTF-8: {reprlib.repr(value)}")
    return without_control_characters(value).strip()


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        told = "is missing" if _is_missing(value) else f"must be text; this is {reprlib.repr(value)}"
        raise UserError(f"{column} {told}")
    text = PLACEHOLDER.sub("", _characters(value, column))
    try:
        return read_question(text)
    except UserError as error:
        raise UserError(f"{column} is empty") from error


def _said(value: Any, column: str, speakers: Sequence[str]) -> Any:
    """What one of the speakers says first in a conversation, of turns as LLaVA's ({"from", "value"}) or messages
    ({"role", "content"}); what is none comes back as it is."""
    if isinstance(value, str) and _small(column) in TURNS:
        raise UserError(f"{column} must be a list of turns; this is {reprlib.repr(value)}")
    turns = [turn for turn in value if isinstance(turn, dict)] if isinstance(value, list) else []
    if not any({"from", "role"} & turn.keys() for turn in turns):
        return value
    by = (turn for turn in turns if str(turn.get("from") or turn.get("role")).lower() in speakers)
    turn = next(by, {})
    said = turn.get("content") if turn.get("value") is None else turn["value"]
    if isinstance(said, list):  # a message's parts
        return "\n".join(part["text"] for part in said if isinstance(part, dict) and isinstance(part.get("text"), str))
    return said


def _picture(table: Table, index: int, column: str) -> Image.Image:
    """The picture in a cell: as bytes, in base64, or a path; or the only one of a list."""
    value = table.cell(index, column)
    if isinstance(value, list):
        if len(value) > 1:
            raise UserError(f"it has {len(value)} pictures; questions about one picture are asked")
        value = value[0] if value else None
    if isinstance(value, dict):  # as `datasets` stores pictures
        value = value.get("bytes") or value.get("path")
    value = value.strip() if isinstance(value, str) else value
    if _is_missing(value) or value == "":
        raise UserError(f"{column} is missing")
    if isinstance(value, str) and (value[:5].lower() == "data:" or len(value) > LONGEST_PATH):
        if len(value) > LONGEST_PICTURE:
            raise UserError(f"{column} has {len(value):,} characters; a picture may have {LONGEST_PICTURE:,}")
        try:  # base64, in a data URI or alone
            value = base64.b64decode("".join(value.rpartition(",")[2].split()), validate=True)
        except ValueError as error:
            raise UserError(f"{column} is no picture in base64: {reprlib.repr(value)}") from error
    if isinstance(value, bytes):
        return open_picture(value)
    if not isinstance(value, str) or re.match("https?://", value):
        raise UserError(f"{column} must be a picture or the path of one; this is {reprlib.repr(value)}")
    return open_picture(table.folder / _characters(value, column))
