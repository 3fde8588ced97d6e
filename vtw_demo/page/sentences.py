"""What is said while something is waited for, and where it goes wrong: one sentence, and never a stack trace."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any, TypeVar

import gradio as gr

from vtw_demo.page.layout import Layout
from vtw_demo.page.lines import problem_line
from vtw_demo.page.turns import Place, StoppedError

logger = logging.getLogger(__name__)

Shown = dict[Any, Any]
"""New values of components."""

Result = TypeVar("Result")

FAILED = "The run failed, and the server's log says why; the model is ready for the next one."


def in_sentences(layout: Layout, steps: Iterator[Shown]) -> Iterator[Shown]:
    """`steps`, and in place of an exception one sentence on the page."""
    try:
        yield from steps
    except StoppedError:  # by the visitor's next request, which says itself what goes on, or by their own click
        yield {layout.verdict: gr.skip()}
    except (ValueError, TypeError) as error:
        yield {layout.verdict: problem_line(str(error))}
    except Exception:
        logger.exception("a run failed")
        yield {layout.verdict: problem_line(FAILED)}


def told(show: Callable[[Place], Shown], steps: Generator[Place, None, Result]) -> Generator[Shown, None, Result]:
    """What `steps` gives at its end; until then its places in the queue, as `show` shows them."""
    with closing(steps):
        while True:
            try:
                place = next(steps)
            except StopIteration as end:
                result: Result = end.value
                return result
            yield show(place)
