"""The file of an evaluation's answers: a line a sample, added as they come, so that a stopped evaluation goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vtw_demo.errors import UserError
from vtw_demo.evaluation.answering import Outcome
from vtw_demo.evaluation.data import EvaluationSample
from vtw_demo.files import write_whole


class AnswersFile:
    """JSON lines: first what the answers depend on, then a sample a line, with its answer in each way."""

    def __init__(self, path: Path, depends_on: dict[str, Any]) -> None:
        self.path = path
        self.depends_on = json.loads(json.dumps(depends_on))
        self.lines: dict[str, dict[str, Any]] = {}
        if not path.exists():
            return
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n")):
            try:
                row = json.loads(line)
                if number and all({"answer", "kl", "flops_left"} <= way.keys() for way in row["ways"].values()):
                    self.lines[row["key"]] = row
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # a line that was being written when its process was killed
            if number == 0 and row.get("depends_on") != self.depends_on:
                raise UserError(
                    f"{path} holds answers of another evaluation: {_changed(row.get('depends_on'), self.depends_on)}. "
                    "Choose another folder with --out, or remove that file."
                )

    def outcomes(self, sample: EvaluationSample, picture: str) -> dict[str, Outcome]:
        """The sample's answers that are there, by the way's name; none where its picture was another one."""
        row = self.lines.get(sample_key(sample))
        if row is None or row.get("picture") != picture:
            return {}
        return {name: Outcome(way["answer"], way["kl"], way["flops_left"]) for name, way in row["ways"].items()}

    def keep(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add lines, in one piece."""
        added = {row["key"]: row for row in rows}
        self.lines |= added
        written = [json.dumps(row, ensure_ascii=False) for row in added.values()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        begun = self.path.exists()
        with self.path.open("a", encoding="utf-8") as file:
            # Begun by a line's end: the last line may have been cut short.
            head = "" if begun else json.dumps({"depends_on": self.depends_on})
            file.write("\n".join([head, *written]) + "\n")

    def finish(self, keys: Iterable[str]) -> None:
        """Write the file anew: a line each for these samples, in this order, then what else it held."""
        ordered = list(dict.fromkeys([*keys, *self.lines]))
        rows = [json.dumps(self.lines[key], ensure_ascii=False) for key in ordered if key in self.lines]
        write_whole(self.path, "\n".join([json.dumps({"depends_on": self.depends_on}), *rows, ""]).encode())


def sample_key(sample: EvaluationSample) -> str:
    """Equal for samples that are from the same place and ask the same."""
    said = repr((sample.name, sample.kind, sample.question, sample.references))
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _changed(before: Any, now: dict[str, Any]) -> str:
    if not isinstance(before, dict):
        return "its first line is damaged"
    return "; ".join(
        f"{name} was {before.get(name)!r}, and is {now.get(name)!r}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    )
