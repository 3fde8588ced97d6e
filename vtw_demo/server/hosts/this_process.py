"""The model runs in the page's own process, on its model thread."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Concatenate

from vtw_demo.models.loading import ModelChoice, OnProgress, load_choice
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.server.hosts.host import Arguments, Event


class ThisProcess:
    at_once = 1

    def load(self, choice: ModelChoice, report: OnProgress) -> VisionLanguageModel:
        return load_choice(choice, report)

    def place(self, vlm: VisionLanguageModel) -> None:
        pass

    def release(self, vlm: VisionLanguageModel) -> None:
        vlm.release()

    def run(
        self,
        function: Callable[Concatenate[VisionLanguageModel, Arguments], Iterator[Event]],
        vlm: VisionLanguageModel,
        prefills: int,
        new_tokens: int = 0,
    ) -> Callable[Arguments, Iterator[Event]]:
        return partial(function, vlm)

    def close(self) -> None:
        pass
