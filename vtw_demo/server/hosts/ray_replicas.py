"""The model runs on replicas that Ray Serve keeps: on this machine, or on a cluster.

Ray ends a process that uses it when it goes itself, so another process than the page's does (`ray_driver`), and is
started again until Ray is back.
"""

from __future__ import annotations

import importlib.util
import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Concatenate

from vtw_demo.errors import UserError
from vtw_demo.models.loading import EMBEDDED, LoadProgress, ModelChoice, OnProgress
from vtw_demo.models.prompt import Prompt
from vtw_demo.models.ray_cluster import MISSING, check_address
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.server.hosts.host import Arguments, Event, raised_again
from vtw_demo.server.hosts.ray_process import GONE, RayProcess

logger = logging.getLogger(__name__)

# How long a new process waits before it looks for Ray.
AGAIN_SECONDS = 3.0


@dataclass(frozen=True)
class ReplicaCount:
    fewest: int
    most: int

    @classmethod
    def read(cls, text: str) -> ReplicaCount:
        """From "2", or "1:4". Raises UserError."""
        first, _, last = text.partition(":")
        with suppress(ValueError):
            fewest, most = int(first), int(last if ":" in text else first)
            if 1 <= fewest <= most:
                return cls(fewest, most)
        raise UserError(
            f"--replicas (or VTW_REPLICAS) takes a number from 1 on, or fewest and most as in 1:4; this is {text!r}."
        )


class RayReplicas:
    """`address` is a cluster's; None starts Ray on this machine. Raises UserError where Ray isn't installed, or not
    there."""

    def __init__(self, replicas: ReplicaCount, address: str | None = None) -> None:
        if importlib.util.find_spec("ray") is None:
            raise UserError(MISSING)
        if address is not None:
            check_address(address)
        self.at_once = replicas.most
        self._settings = {"address": address, "fewest": replicas.fewest, "most": replicas.most}
        self._changing = threading.Lock()
        self._process: RayProcess | None = None
        self._loaded: ModelChoice | None = None
        self._closed, self._returning = threading.Event(), threading.Lock()

    def load(self, choice: ModelChoice, report: OnProgress) -> VisionLanguageModel:
        """All replicas load it, or none keeps anything. Raises UserError where one of them can't."""
        with self._changing:
            if self._process is None:
                report(LoadProgress(choice.name, "checking"))
                self._start()
            assert self._process is not None
            report(LoadProgress(choice.name, "reading weights"))
            (told,) = self._process.asked("deploy", choice)
            vlm = pickle.loads(told).outline()
            is_hubs = choice.name != EMBEDDED and not Path(choice.name).expanduser().is_dir()
            self._loaded = replace(choice, revision=vlm.revision) if is_hubs and vlm.revision else choice
        return vlm

    def place(self, vlm: VisionLanguageModel) -> None:
        pass

    def release(self, vlm: VisionLanguageModel) -> None:
        """What is loaded next takes its replicas' place."""

    def run(
        self,
        function: Callable[Concatenate[VisionLanguageModel, Arguments], Iterator[Event]],
        vlm: VisionLanguageModel,
        prefills: int,
        new_tokens: int = 0,
    ) -> Callable[Arguments, Iterator[Event]]:
        def run(*arguments: Arguments.args, **options: Arguments.kwargs) -> Iterator[Event]:
            here = [value.to("cpu") if isinstance(value, Prompt) else value for value in arguments]
            stop: Any = options.get("stop")
            sent = pickle.dumps((function, vlm.detail, here, options | ({"stop": None} if "stop" in options else {})))
            if self._process is None or not self._process.is_up:
                raise UserError(GONE)
            yield from raised_again(map(pickle.loads, self._process.asked("run", sent, stop)))

        return run

    def close(self) -> None:
        self._closed.set()
        with self._changing:
            if self._process is not None:
                self._process.close()

    def _start(self) -> None:
        self._process = RayProcess(self._settings, self._come_back)
        self._process.wait()

    def _come_back(self) -> None:
        """Ray has gone: again and again until it is there, and the model on it."""
        # Each process that finds no Ray ends and calls this, too.
        if self._loaded is None or not self._returning.acquire(blocking=False):
            return
        try:
            while not self._closed.wait(AGAIN_SECONDS):
                with self._changing:
                    try:
                        if self._process is not None and self._process.is_up:
                            self._process.close()
                        self._start()
                        assert self._process is not None
                        list(self._process.asked("deploy", self._loaded))
                        logger.info("Ray is back, and the model on it")
                        return
                    except (UserError, OSError) as error:
                        logger.warning("Ray isn't back: %s", error)
        finally:
            self._returning.release()
