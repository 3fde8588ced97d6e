"""Commands of the project in processes of their own, forked from one that has imported what they need.

A start of Python with torch and transformers takes several seconds, a fork none.
"""

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [f"vtw_demo.{name}" for name in ("plots.compare_command", "plots.calibrate_command", "benchmark.command")]
)


class Forked:
    """The process of a command, and what it says."""

    def __init__(self, process: Any, output: Connection) -> None:
        self.process, self._output = process, output

    def ended(self, seconds: float = 200) -> int | None:
        """Its exit code; None while it runs after so many seconds."""
        self.process.join(seconds)
        return self.process.exitcode

    def said(self) -> str:
        """All that it has said, once it has ended."""
        return b"".join(iter(lambda: os.read(self._output.fileno(), 65536), b"")).decode()


@contextmanager
def forked(*command: Any, worst: tuple[str, str, int] | None = None, **environment: Any) -> Iterator[Forked]:
    """`python -m vtw_demo COMMAND`, which is killed at the end.

    With `worst` of a moment, a part of a file's name and a number, it comes to its end, or to that of its room, at that
    moment of the file that is the nth of such a name: "before it is written", "half-way", "before it is renamed", or
    "no more room". It may say as much as a pipe holds.
    """
    output, told = _context.Pipe(duplex=False)
    environment = {name: str(value) for name, value in environment.items()}
    given = (list(map(str, command)), told, worst, dict(os.environ) | environment)
    process = _context.Process(target=_run, args=given)
    process.start()
    told.close()
    try:
        yield Forked(process, output)
    finally:
        process.kill()
        process.join()
        output.close()


def _run(command: list[str], told: Connection, worst: tuple[str, str, int] | None, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for stream in (1, 2):
        os.dup2(told.fileno(), stream)
    if worst:
        _end_at(*worst)
    from vtw_demo.__main__ import main

    sys.exit(main(command))


def _end_at(moment: str, name: str, nth: int) -> None:
    seen = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event != ("os.rename" if moment == "before it is renamed" else "open") or name not in str(arguments[0]):
            return
        if event == "open" and not arguments[2] & os.O_WRONLY:
            return
        seen += 1
        if seen != nth:
            return
        if moment in ("half-way", "no more room"):
            written = os.path.getsize(arguments[0]) if os.path.exists(arguments[0]) else 0
            if moment == "half-way":
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (written + 100, resource.RLIM_INFINITY))
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
