"""The process of `ray_driver`, as the page sees it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from vtw_demo.errors import UserError
from vtw_demo.server.hosts.host import LostError

ROOT = Path(__file__).parents[3]
# Kinds of answers.
EVENT, ENDED, REFUSED, LOST, FAILED = "event", "ended", "refused", "lost", "failed"
TOKEN = "A cluster that asks for a token wants RAY_AUTH_MODE=token here, too."
GONE = "Ray, on which the model runs, is gone. The page goes on as soon as it is back: ask again in a minute."
# How soon a stop is seen, and how long its end may take.
LOOK_SECONDS, CLOSING_SECONDS = 0.02, 15.0


class RayProcess:
    """The process of `ray_driver`. When it ends, those who wait for its answers get `LostError`, and `ended` is called
    in a thread of its own."""

    def __init__(self, settings: dict[str, Any], ended: Callable[[], None]) -> None:
        ours, theirs = socket.socketpair()
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        # A session of its own: Ctrl+C is for the page alone.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vtw_demo.server.hosts.ray_driver", str(theirs.fileno())],
            env=os.environ | {"PYTHONPATH": paths},
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        self.is_up = True
        self._socket, self._connection = ours, Connection(os.dup(ours.fileno()))
        self._sending, self._numbers = threading.Lock(), count(1)
        self._answers: dict[int, SimpleQueue[tuple[str, Any]]] = {0: SimpleQueue()}
        self._connection.send(settings)
        threading.Thread(target=self._listen, args=(ended,), name="answers of Ray", daemon=True).start()

    def wait(self) -> None:
        """Until it has Ray. Raises UserError where there is none."""
        try:
            list(self._events(0, None))
        except UserError as error:
            raise UserError(f"Ray can't be used: {error} {TOKEN}") from error

    def asked(self, what: str, value: Any, stop: Any = None) -> Iterator[bytes]:
        number = next(self._numbers)
        self._answers[number] = SimpleQueue()
        ended = False
        try:
            self._send((what, number, value))
            yield from self._events(number, stop)
            ended = True
        finally:
            if not ended:
                with suppress(LostError):
                    self._send(("cancel", number, None))
            self._answers.pop(number, None)

    def _events(self, number: int, stop: Any) -> Iterator[bytes]:
        answers, is_told = self._answers[number], False
        while True:
            if stop is not None and stop.is_set() and not is_told:
                self._send(("stop", number, None))
                is_told = True
            try:
                kind, value = answers.get(timeout=LOOK_SECONDS)
            except Empty:
                if not self.is_up and answers.empty():
                    raise LostError(GONE) from None
                continue
            if kind == EVENT:
                yield value
            elif kind == ENDED:
                return
            elif kind == LOST:
                raise LostError("What ran this was lost twice: ask again.")
            elif kind == REFUSED:
                raise UserError(value)
            else:
                raise RuntimeError(value)

    def _send(self, message: tuple) -> None:
        try:
            with self._sending:
                self._connection.send(message)
        except OSError as error:
            raise LostError(GONE) from error

    def _listen(self, ended: Callable[[], None]) -> None:
        with suppress(EOFError, OSError):
            while True:
                number, *answer = self._connection.recv()
                if number in self._answers:
                    self._answers[number].put((answer[0], answer[1]))
        self.is_up = False
        self._process.wait()
        ended()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
