"""A replica of Ray Serve: the model, and one run at a time."""

import asyncio
import pickle
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from vtw_demo.models.loading import ModelChoice, load_choice
from vtw_demo.server.hosts.host import events_of
from vtw_demo.server.hosts.outline import Facts

# A run that gives nothing for so long hangs: the replica is started anew. A sweep of a large model on a CPU gives
# nothing before its end.
SILENT_SECONDS = 1800.0


@dataclass(frozen=True)
class ReplicaPlan:
    """What each replica loads, in so many threads, and how many of them share a CPU."""

    choice: ModelChoice
    threads: int | None  # None on a GPU
    sharing: int = 1


class Stops:
    """An actor that tells replicas which runs are stopped: Ray can only cancel one, and a run that is stopped ends by
    itself, with the events that say so."""

    def __init__(self) -> None:
        self._stopped: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)

    async def wait(self, number: int) -> None:
        await self._stopped[number].wait()

    async def set(self, number: int) -> None:
        self._stopped[number].set()

    async def forget(self, number: int) -> None:
        self._stopped.pop(number, asyncio.Event()).set()


class Replica:
    """Raises what `load_choice` does; Ray Serve starts it again where it dies."""

    def __init__(self, plan: ReplicaPlan, stops: Any) -> None:
        self._stops = stops
        if plan.threads is not None:
            torch.set_num_threads(plan.threads)
        self._vlm = replace(load_choice(plan.choice), sharing=plan.sharing)
        self._heard: float | None = None  # while a run goes on, when it last gave something

    async def facts(self) -> bytes:
        return pickle.dumps(Facts.of(self._vlm))

    def check_health(self) -> None:
        """Asked by Ray Serve, which ends a replica that raises."""
        if self._heard is not None and time.monotonic() - self._heard > SILENT_SECONDS:
            raise RuntimeError(f"a run has given nothing for {SILENT_SECONDS:.0f} s")

    async def run(self, asked: bytes, number: int) -> AsyncIterator[bytes]:
        """The events of what is asked: a function, the picture's detail, arguments and options, pickled as each event
        is. Where Ray cancels it, its `stop` is set, and it is over once its thread is."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[bytes | None]()
        stop = threading.Event()

        def hear(event: bytes | None) -> None:
            self._heard = time.monotonic()
            events.put_nowait(event)

        tell: Callable[[bytes | None], Any] = lambda event: loop.call_soon_threadsafe(hear, event)  # noqa: E731
        work = threading.Thread(target=self._work, args=(asked, stop, tell), daemon=True)
        self._heard = time.monotonic()
        work.start()
        stopped = self._stops.wait.remote(number).future()
        stopped.add_done_callback(lambda _: stop.set())
        try:
            while (event := await events.get()) is not None:
                yield event
        finally:
            stop.set()
            while work.is_alive():
                await asyncio.sleep(0.005)
            self._heard = None
            self._stops.forget.remote(number)

    def _work(self, asked: bytes, stop: threading.Event, tell: Callable[[bytes | None], Any]) -> None:
        try:
            function, detail, arguments, options = pickle.loads(asked)
            options = {name: stop if name == "stop" else value for name, value in options.items()}
            for event in events_of(function, self._vlm.at_detail(detail), arguments, options):
                tell(pickle.dumps(event))
        finally:
            tell(None)
