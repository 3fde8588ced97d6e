"""The numbers of a plot as rows, for a CSV file."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Table:
    """Rows under named columns; names of measured columns end with their unit, as in "prefill (ms)".

    Raises ValueError for a row whose length isn't that of the columns.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"A row has {len(row)} cells; there are {len(self.columns)} columns.")

    def to_csv(self) -> str:
        """Comma-separated, with a header line; empty where a cell is None."""
        written = io.StringIO()
        writer = csv.writer(written, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return written.getvalue()
