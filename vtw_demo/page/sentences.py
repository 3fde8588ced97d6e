"""What is said while something is waited for, and where it goes wrong: one sentence, and never a stack trace."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any, TypeVar

import gradio as gr

from vtw_demo.page.layout import Layout
from vtw_demo.page.lines import problem_line
from vtw_demo.server.monitoring import Monitoring
from vtw_demo.server.queue import Place, StoppedError

Shown = dict[Any, Any]
"""New values of components."""

Result = TypeVar("Result")


def in_sentences(layout: Layout, monitoring: Monitoring, steps: Iterator[Shown]) -> Iterator[Shown]:
    """`steps`, and in place of an exception one sentence on the page."""
    try:
        yield from steps
        return
    except StoppedError:  # by the visitor's next request, which says itself what goes on, or by their own click
        shown = {layout.verdict: gr.skip()}
    except Exception as error:
        shown = {layout.verdict: problem_line(monitoring.fault_of(error).sentence)}
    yield shown  # here nothing hangs on the error any more


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
