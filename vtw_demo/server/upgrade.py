"""The model that suits this machine, fetched beside the embedded one, which answers until it is there."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from vtw_demo.formats import amount
from vtw_demo.models.loading import EMBEDDED, LoadProgress, ModelChoice
from vtw_demo.models.registry import machine_model
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.server.queue import StoppedError, about
from vtw_demo.server.switching import STILL_THERE, Switching

logger = logging.getLogger(__name__)

GOES_ON = "The embedded model goes on."
# How long it waits for a moment in which nobody uses the model: after that it takes a turn like anybody's.
PATIENCE_SECONDS = 60.0
# The rate of a download is that of its last seconds; what it will take follows from no fewer than these.
RATE_SECONDS, SHORTEST_SECONDS = 10.0, 3.0


@dataclass(frozen=True)
class UpgradeState:
    said: str = ""  # how far it is, in a sentence or two; "" before its start
    is_running: bool = False  # whether it can be stopped; else it can be begun, unless `vlm` is there
    vlm: VisionLanguageModel | None = None  # the model, once it answers


class Upgrade:
    """`choose` gives the model of a name, for None this machine's. `named`: which one it is, once known."""

    def __init__(self, switching: Switching, choose: Callable[[str | None], ModelChoice]) -> None:
        self.named: str | None = None
        self._switching = switching
        self._choose = choose
        self._beginning = threading.Lock()
        self._stop = threading.Event()
        self._state = UpgradeState()
        self._loaded: deque[tuple[float, int]] = deque()
        self._progress: LoadProgress | None = None

    @property
    def state(self) -> UpgradeState:
        state, progress = self._state, self._progress
        if state.is_running and progress is not None:
            said = in_words(progress, self._loaded, time.monotonic())
            return UpgradeState(f"{said} The embedded model answers meanwhile.", True)
        return state

    def begin(self, name: str | None = None) -> None:
        """Fetch the model of that name, or this machine's, and let it answer; nothing where that goes on or is done."""
        with self._beginning:
            if self._state.is_running or self._state.vlm is not None:
                return
            self.named, self._stop, self._progress = name, threading.Event(), None
            self._state = UpgradeState("Looking for the model that suits this machine.", True)
        threading.Thread(target=self._run, args=(name, self._stop), name="upgrade", daemon=True).start()

    def stop(self, said: str = f"Stopped; what has come is kept. {GOES_ON}") -> None:
        """What has come stays in the cache."""
        self._stop.set()
        if self._state.is_running:
            self._state = UpgradeState(said)

    def _run(self, name: str | None, stop: threading.Event) -> None:
        engine, vlm, said = self._switching.engine, None, ""
        try:
            _, _, row = machine_model(self._switching.loaded.device)
            choice = self._choose(None if row is not None and row.name == name else name)
            self.named, said = choice.name, choice.reason
            if choice.name != EMBEDDED:
                logger.info("%s", said or f"Fetching {choice.name}, which a link names.")
                self._loaded.clear()
                for event in self._switching.put("upgrade", choice, stop, PATIENCE_SECONDS):
                    if isinstance(event, LoadProgress):
                        self._progress = event
                        self._loaded.append((time.monotonic(), event.done))
                why = choice.reason.removeprefix(f"Running {choice.name}") or ", which a link names."
                vlm, said = engine.vlm, f"Now running {choice.name}{why}"
        except StoppedError:
            pass
        except Exception as error:
            said = engine.monitoring.fault_of(error).sentence.removesuffix(STILL_THERE).strip()
            said += f" {GOES_ON}" if engine.vlm.name == EMBEDDED else ""
        if stop is self._stop and (vlm is not None or not stop.is_set()):
            logger.info("%s", said)
            self._state = UpgradeState(said, vlm=vlm)


def in_words(progress: LoadProgress, loaded: deque[tuple[float, int]], now: float) -> str:
    """With the rate of the last seconds, from which older ones are dropped: when so many bytes had been `loaded`."""
    if progress.step != "downloading":
        return str(progress)
    while len(loaded) > 1 and now - loaded[0][0] > RATE_SECONDS:
        loaded.popleft()
    since, before = loaded[0] if loaded else (now, 0)
    rate = (progress.done - before) / max(now - since, 0.1)
    is_known = rate > 0 and now - since >= SHORTEST_SECONDS
    left = f", {about((progress.total - progress.done) / rate)} left" if is_known else ""
    return f"{str(progress).removesuffix('.')}, {amount(rate, 'B')}/s{left}."
