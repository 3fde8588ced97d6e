"""Another model in place of the one that is loaded: for all visitors, while the page goes on."""

import re
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial
from pathlib import Path

from vtw_demo.comparison.calibration import CalibrationStore
from vtw_demo.errors import UserError
from vtw_demo.models.devices import give_memory_back
from vtw_demo.models.loading import EMBEDDED, LoadProgress, ModelChoice, OnProgress, check_model
from vtw_demo.models.registry import NO_QUANTIZATION, choose_model
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.server.download import TELL_SECONDS, download
from vtw_demo.server.engine import Engine
from vtw_demo.server.queue import Place, StoppedError

STILL_THERE = "The model that was loaded is still there."
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class Switching:
    """`loaded` is the choice that the engine's model came from. Folders of this machine can't be named, but for the one
    that the server was started with. A second switch waits for its turn, as everything that uses the model."""

    def __init__(self, engine: Engine, loaded: ModelChoice, cache: Path | None = None) -> None:
        self.engine = engine
        self.loaded = loaded
        self.cache = cache
        self._first = loaded

    def switch(
        self, visitor: str, name: str, quantization: str, stop: threading.Event
    ) -> Iterator[Place | LoadProgress]:
        """`put` what a visitor names, by its id."""
        yield from self.put(visitor, self._choice(name, quantization), stop)

    def put(
        self, visitor: str, choice: ModelChoice, stop: threading.Event, idle_first: float = 0.0
    ) -> Iterator[Place | LoadProgress]:
        """Check the model, download it while others go on with the one that is loaded, then take a turn: free that
        one's memory, and load. After UserError, and StoppedError once `stop` is set, the one that was loaded is there.

        `idle_first`: for how many seconds at most it waits for a moment in which nobody uses the model.
        """
        before = self.engine.vlm
        yield from _followed(partial(self._fetch, choice), stop)
        self.engine.turns.wait_until_idle(idle_first, stop)
        with self.engine.turns.asked(visitor, "model switch", stop, follows=bool(idle_first), is_alone=True) as turn:
            yield from turn.wait()
            if idle_first and self.engine.vlm is not before:
                raise UserError(f"Meanwhile another model was chosen: {self.engine.vlm.name}.")
            yield from _followed(partial(self._exchange, choice, stop), stop)

    def _choice(self, name: str, quantization: str) -> ModelChoice:
        first = self._first
        if name not in (EMBEDDED, first.name) and (not HUB_ID.fullmatch(name) or Path(name).exists()):
            raise UserError(
                f"{name!r} is no id of the Hugging Face hub, which looks like 'llava-hf/llava-1.5-7b-hf': on the page "
                f"no other can be named, but for {EMBEDDED!r}. {STILL_THERE}"
            )
        revision = first.revision if name == first.name else None
        try:
            return choose_model(name, quantization or NO_QUANTIZATION, first.device, revision, first.quantize_all)
        except UserError as error:
            raise UserError(f"{error} {STILL_THERE}") from error

    def _fetch(self, choice: ModelChoice, report: OnProgress) -> None:
        """All that can be done beside the model that is loaded."""
        report(LoadProgress(choice.name, "checking"))
        try:
            outlook = check_model(choice, reclaimable=self.engine.vlm.memory_bytes)
            download(outlook.files, lambda done, total: report(LoadProgress(choice.name, "downloading", done, total)))
        except UserError as error:
            raise UserError(f"{error} {STILL_THERE}") from error

    def _exchange(self, choice: ModelChoice, stop: threading.Event, report: OnProgress) -> None:
        engine, before = self.engine, self._as_loaded()
        engine.host.release(engine.vlm)
        try:
            return self._use(choice, engine.host.load(choice, report))
        except Exception as error:
            obstacle = str(error)
        give_memory_back()  # what was loaded of it hung on the exception
        if engine.turns.is_closing:
            raise StoppedError
        self._restore(before, obstacle)
        if stop.is_set():
            raise StoppedError
        raise UserError(f"{obstacle} {STILL_THERE}")

    def _restore(self, before: ModelChoice, obstacle: str) -> None:
        try:
            self._use(before, self.engine.host.load(before, lambda progress: None))
        except UserError as error:
            # Its files have gone meanwhile: what ships with the demo is always there.
            embedded = ModelChoice(EMBEDDED, device=before.device)
            self._use(embedded, self.engine.host.load(embedded, lambda progress: None))
            raise UserError(f"{obstacle} The model before can't be loaded again: {error}") from error

    def _use(self, choice: ModelChoice, vlm: VisionLanguageModel) -> None:
        vlm = vlm.at_detail(self.engine.vlm.picture_detail)
        self.engine.use(vlm, CalibrationStore.of(vlm, self.cache))
        self.loaded = choice

    def _as_loaded(self) -> ModelChoice:
        """The choice that gives the very model that is loaded, even if the hub has a newer one."""
        name, revision = self.loaded.name, self.engine.vlm.revision
        is_hubs = name != EMBEDDED and not Path(name).expanduser().is_dir()
        return replace(self.loaded, revision=revision) if is_hubs and revision else self.loaded


def _followed(work: Callable[[OnProgress], None], stop: threading.Event) -> Generator[LoadProgress, None, None]:
    """What `work` reports, the latest from time to time; at the end what it raised. Closing this stops it."""
    latest: list[LoadProgress] = []
    end: Future[None] = Future()

    def report(progress: LoadProgress) -> None:
        if stop.is_set():
            raise StoppedError
        latest[:] = [progress]

    def run() -> None:
        try:
            work(report)
            end.set_result(None)
        except BaseException as error:  # raised again by whoever follows
            end.set_exception(error)

    threading.Thread(target=run, name="model switch", daemon=True).start()
    try:
        while not end.done():
            wait([end], TELL_SECONDS)
            if latest:
                yield latest.pop()
    except GeneratorExit:
        stop.set()
        raise
    finally:
        wait([end])
    end.result()
