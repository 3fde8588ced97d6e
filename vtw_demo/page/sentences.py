"""Nothing that goes wrong shows as a stack trace: one sentence stands on the page instead."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from vtw_demo.page.layout import Layout
from vtw_demo.page.lines import problem_line

logger = logging.getLogger(__name__)

Shown = dict[Any, Any]
"""New values of components."""

FAILED = "The run failed, and the server's log says why; the model is ready for the next one."


def in_sentences(layout: Layout, steps: Iterator[Shown]) -> Iterator[Shown]:
    """`steps`, and in place of an exception one sentence on the page."""
    try:
        yield from steps
    except (ValueError, TypeError) as error:
        yield {layout.verdict: problem_line(str(error))}
    except Exception:
        logger.exception("a run failed")
        yield {layout.verdict: problem_line(FAILED)}
