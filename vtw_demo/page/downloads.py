"""Files to take away, made when they are asked for and handed to the browser: none of them stays on the server."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from vtw_demo.comparison.analysis import ALL_PARTS, Analysis, Part
from vtw_demo.comparison.summary import verdict
from vtw_demo.errors import UserError
from vtw_demo.page.html import progress_line, verdict_line
from vtw_demo.page.page import Page, Shown
from vtw_demo.page.session import Session

WRITING = "Writing it down; what hasn't been looked at yet is measured first."
_numbers = itertools.count()


def download(name: str, media_type: str, content: str | bytes) -> dict[str, str | int]:
    """What the script that saves it takes. Its number makes the same file, taken twice, a new value."""
    encoded = content.encode() if isinstance(content, str) else content
    return {"number": next(_numbers), "name": name, "type": media_type, "content": base64.b64encode(encoded).decode()}


def take_whole(
    page: Page,
    session: Session,
    name: str,
    media_type: str,
    make: Callable[[Analysis], str | bytes],
    parts: Sequence[Part] = ALL_PARTS,
) -> Iterator[Shown]:
    """The file that `make` makes of the comparison that is shown, once `parts` are measured, each in a turn of its own;
    it is made while others use the model."""
    layout, analysis, stop = page.layout, session.analysis, session.measuring
    if analysis is None:
        raise UserError("There is nothing to take away yet: run a comparison first.")
    yield {layout.verdict: progress_line(WRITING)}
    for part in parts:
        with suppress(UserError):  # a part that this model's can't be known of: the file says so itself
            for place in page.engine.measure(session.visitor, analysis, part, stop, follows=True):
                yield {layout.verdict: progress_line(str(place) if place.ahead else WRITING)}
    content = make(analysis)
    yield {layout.file: download(name, media_type, content), layout.verdict: verdict_line(verdict(analysis.comparison))}
