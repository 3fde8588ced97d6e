"""The questions of an evaluation spread over copies of the model, each in a process of its own that Ray starts: on this
machine, or on the nodes of a cluster. Ray starts one that died anew, and asks it the same questions again."""

import os
import signal
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from vtw_demo.errors import UserError
from vtw_demo.evaluation.answering import Answers, OnAnswers, Request, answer_samples
from vtw_demo.models.devices import on_model_thread
from vtw_demo.models.loading import EMBEDDED, ModelChoice, load_choice
from vtw_demo.models.picture_detail import Detail
from vtw_demo.models.ray_cluster import MISSING, check_address, share_of_cpus
from vtw_demo.models.vision_language_model import VisionLanguageModel

RETRIES = 3  # of the same questions, after their worker's death
RESTARTS = 10  # of each worker: Ray doesn't count the questions that it retries for want of memory


class Worker:
    """Runs in a process of its own. The first call loads the model: of one in a dead one's place, the next question."""

    def __init__(self, choice: ModelChoice, detail: Detail, precision: str, threads: int) -> None:
        self._choice, self._detail, self._precision, self._threads = choice, detail, precision, threads

    @cached_property
    def _vlm(self) -> VisionLanguageModel:
        torch.set_num_threads(min(self._threads, torch.get_num_threads()))
        vlm = load_choice(self._choice).at_detail(self._detail)
        if vlm.precision != self._precision:
            raise UserError(
                f"A worker on {socket.gethostname()} holds the model in {vlm.precision}, and the command in "
                f"{self._precision}: their answers can't stand in one file. Run it on machines that are alike."
            )
        return vlm

    def load(self) -> None:
        assert self._vlm

    def answer(self, request: Request) -> Answers:
        return on_model_thread(answer_samples, self._vlm, *request)


class Replicas:
    """`count` workers, which are started when questions are first asked and end with the block; `address` is that of a
    cluster to join, None starts a Ray for the block alone. Each worker has an equal share of the CPUs and computes in
    as many threads, in fewer where OMP_NUM_THREADS says so, and a GPU of its own where the model runs on one.

    Raises UserError where Ray isn't installed, or no cluster is there.
    """

    def __init__(self, count: int, address: str | None, choice: ModelChoice, detail: Detail) -> None:
        self.count, self.address, self.choice, self.detail = count, address, choice, detail
        self._workers: list[Any] = []

    def __enter__(self) -> "Replicas":
        _ray()
        if self.address:
            check_address(self.address)
            self._join(self.address)
        return self

    def __exit__(self, *raised: object) -> None:
        _ray().shutdown()  # which ends this command's workers, and of Ray what it has started

    def answer(self, vlm: VisionLanguageModel, requests: Sequence[Request], on_answers: OnAnswers) -> Iterator[Answers]:
        """What each request is answered, in their order, once the workers that it takes have loaded what `vlm` is.
        Raises what `answer_samples` does, and UserError where a worker dies again and again, or can't be had."""
        self._start(vlm, min(self.count, len(requests)))
        return self._answers(requests, on_answers)

    def _answers(self, requests: Sequence[Request], on_answers: OnAnswers) -> Iterator[Answers]:
        left, idle = iter(requests), list(self._workers)
        busy: dict[Any, Any] = {}  # the worker of each answer that is awaited
        asked: deque[tuple[Request, Any]] = deque()
        while True:
            while idle and (request := next(left, None)) is not None:
                worker = idle.pop()
                asked.append((request, worker.answer.remote(_with_pictures(request))))
                busy[asked[-1][1]] = worker
            if not asked:
                return
            done, _ = _ray().wait(list(busy))
            idle += [busy.pop(answer) for answer in done]
            while asked and asked[0][1] not in busy:
                request, answer = asked.popleft()
                yield _result(answer, f"at the questions from {request.samples[0].name!r} on")
                on_answers(len(request.samples) * len(request.variants))

    def _start(self, vlm: VisionLanguageModel, count: int) -> None:
        if count and not _ray().is_initialized():
            self._join("local")
        if len(self._workers) < count:
            on_gpu = vlm.device.type == "cuda"
            threads = share_of_cpus(_ray().nodes(), self.count, on_gpu)
            folder = Path(self.choice.name).expanduser()
            is_folder = self.choice.name != EMBEDDED and folder.is_dir()
            choice = replace(
                self.choice,
                name=str(folder.resolve()) if is_folder else self.choice.name,
                revision=vlm.revision or self.choice.revision,
                device=vlm.device.type,
                # None for what was expanded: each would time anew whether it should be.
                quantization=self.choice.quantization if vlm.quantization else None,
            )
            share = {"num_cpus": threads, "num_gpus": int(on_gpu)}
            make = _ray().remote(Worker).options(**share, max_restarts=RESTARTS, max_task_retries=RETRIES)
            for _ in range(len(self._workers), count):
                self._workers.append(make.remote(choice, self.detail, vlm.precision, threads))
        for loaded in [worker.load.remote() for worker in self._workers[:count]]:
            _result(loaded, "while it loaded the model")

    def _join(self, address: str) -> None:
        ray = _ray()
        on_end = signal.getsignal(signal.SIGTERM)
        quiet = {"log_to_driver": False, "logging_level": "error"}
        try:
            ray.init(address, **quiet, **({"include_dashboard": False} if address == "local" else {}))
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"Ray at {address!r} can't be joined: {reason}") from error
        finally:
            signal.signal(signal.SIGTERM, on_end)  # Ray's own waits for what the model's thread has in hand


def _ray() -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError as error:
        raise UserError(MISSING) from error
    return ray


def _with_pictures(request: Request) -> Request:
    """With its pictures opened: a cluster's nodes don't have the files."""
    samples = [replace(sample, open=sample.open().copy) for sample in request.samples]
    return request._replace(samples=samples)


def _result(answer: Any, when: str) -> Any:
    errors = _ray().exceptions
    try:
        return _ray().get(answer)
    except errors.RayTaskError as error:
        raise error.cause from error
    except (errors.RayActorError, errors.OutOfMemoryError) as error:
        raise UserError(
            f"A worker died again and again {when}, perhaps for want of memory. Ask for fewer --replicas or a "
            "smaller --batch-size: what was answered before is kept, and the same command goes on there."
        ) from error
