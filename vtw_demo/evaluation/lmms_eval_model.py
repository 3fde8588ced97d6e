"""A model of lmms-eval 0.7 that answers with its visual tokens withdrawn: any of its tasks runs so.

`lmms-eval --model vtw --model_args pretrained=llava-hf/llava-1.5-7b-hf,quantization=4bit,layer=16 --tasks ...`
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from PIL import Image
from torch.utils.data import BatchSampler
from tqdm import tqdm

from vtw_demo.errors import UserError
from vtw_demo.models.loading import load
from vtw_demo.withdrawal.withdraw import check_layer, withdraw

NEW_TOKENS = 1024


class VisualTokensWithdrawal(lmms):
    """Greedy answers of one of this package's models, which is loaded as by `vtw_demo.load`; `layer` is the withdrawal
    layer K, None, as the number of decoder layers, withdraws nothing. It answers `batch_size` questions at once."""

    is_simple = True

    def __init__(
        self,
        pretrained: str = "embedded",
        layer: int | None = None,
        quantization: str | None = None,
        device: str | None = None,
        revision: str | None = None,
        batch_size: int | str = 1,
        picture_detail: str = "usual",
        **further: Any,
    ) -> None:
        super().__init__()
        if further:
            raise UserError(f"vtw takes no {', '.join(further)}: see its class for what it takes.")
        asked: dict[str, Any] = {"quantization": quantization, "picture_detail": picture_detail}
        self.vlm = load(pretrained, device=device, revision=revision, **asked)
        self.layer = self.vlm.layers if layer is None else int(layer)
        check_layer(self.layer, self.vlm.layers)
        self.batch_size = int(batch_size)
        if self.batch_size < 1:
            raise UserError(f"A batch has at least 1 question; this is {batch_size}.")

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answers, cut before the first of a task's `until`."""
        answers: list[str] = []
        with tqdm(total=len(requests), desc=f"answering at K = {self.layer}", unit="question") as bar:
            # Neighbours that are answered alike, in the order in which they came.
            for (cap, ends), alike in groupby(requests, _asked):
                for batch in BatchSampler(list(alike), self.batch_size, drop_last=False):
                    inputs = self.vlm.prepare_batch([self._query(request) for request in batch])
                    with torch.inference_mode(), withdraw(self.vlm.model, self.layer):
                        output = self.vlm.generate(**inputs, max_new_tokens=cap)
                    for row in output[:, inputs["input_ids"].shape[1] :].tolist():
                        answer = self.vlm.decode(row)
                        for end in ends:
                            answer = answer.partition(end)[0]
                        answers.append(answer)
                    bar.update(len(batch))
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("vtw answers in words: choose the generative form of the task.")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("vtw answers one question about a picture: choose a task of one round.")

    def _query(self, request: Instance) -> tuple[Image.Image, str]:
        question, _, pictures_of, number, task, split = request.args
        pictures = pictures_of(self.task_dict[task][split][number])
        if len(pictures) != 1 or not isinstance(pictures[0], Image.Image):
            came = f"{len(pictures)} pictures or clips came with one of the task {task!r}"
            raise UserError(f"vtw answers questions about one picture each; {came}.")
        return pictures[0].convert("RGB"), question.replace("<image>", "").strip()


def _asked(request: Instance) -> tuple[int, tuple[str, ...]]:
    """How many tokens an answer may have, and what ends it."""
    options = request.args[1]
    until = options.get("until") or ()
    ends = (until,) if isinstance(until, str) else tuple(until)
    return int(options.get("max_new_tokens", NEW_TOKENS)), tuple(end for end in ends if end.strip())
