"""Many visitors at once: whether each gets the answers that its requests get alone, and how long that takes."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import unescape
from typing import Any

import httpx

from vtw_demo.benchmark.load_test.protocol import FailedError, Page, QueueFullError, Visitor, refusal
from vtw_demo.benchmark.load_test.requests import Answers, Request

LONGEST_WAIT_SECONDS = 300.0
# One in so many visitors uses the page, the others its API.
VISITORS_A_BROWSER = 10
KEPT_COMPARISONS = 30


@dataclass(frozen=True)
class Load:
    """What came of `clients` visitors who asked for `seconds`, `browsers` of them on the page, the others by the API.

    - `distinct`: how many different requests there were; each was asked alone first.
    - `sent`: requests, of which each was answered or is in `lost`; `answer_seconds` has those of the answered.
    - `refused`: how often the server said that its queue is full; the visitor tried again.
    - `wrong`: sentences about answers that differ from those that the same request gets alone, and about pages that
      showed another visitor's comparison.
    - `lost`: sentences about requests that got no answer.

    Raises ValueError where requests are neither answered nor lost.
    """

    clients: int
    browsers: int
    seconds: float
    distinct: int
    sent: int
    refused: int
    answer_seconds: tuple[float, ...]
    wrong: tuple[str, ...]
    lost: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.sent != self.answered + len(self.lost):
            raise ValueError(f"{self.sent} requests, but {self.answered} answered and {len(self.lost)} lost.")

    @property
    def answered(self) -> int:
        return len(self.answer_seconds)

    def quantile(self, share: float) -> float | None:
        """The seconds in which so large a share (0 to 1) of the answers came; None without answers."""
        ordered = sorted(self.answer_seconds)
        return ordered[round(share * (len(ordered) - 1))] if ordered else None


@dataclass
class _Counts:
    sent: int = 0
    refused: int = 0
    answer_seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


async def compare(visitor: Visitor, request: Request) -> dict[str, Any]:
    """The comparison that the API gives. Raises QueueFullError and FailedError as `Visitor.call` does."""
    picture = await visitor.upload(request.picture)
    [comparison] = await visitor.call("compare", [picture, request.question, request.layer, request.max_new_tokens])
    return comparison


async def measure_load(
    http: httpx.AsyncClient, page: Page, clients: int, seconds: float, requests: Sequence[Request]
) -> Load:
    """Ask all `requests` one after the other, then all again by `clients` visitors at once for so many seconds.

    Each visitor has requests of their own, asked again and again, and is waited for at the end. Raises QueueFullError
    and FailedError where a request gets no answer alone.
    """
    first = Visitor(http, page)
    alone = {request: Answers.read(await compare(first, request)) for request in requests}
    counts, end = _Counts(), time.monotonic() + seconds
    browsers = clients // VISITORS_A_BROWSER
    await asyncio.gather(
        *(
            (_browse if index < browsers else _use_api)(
                Visitor(http, page), requests[index::clients], alone, end, counts
            )
            for index in range(clients)
        )
    )
    return Load(
        clients=clients,
        browsers=browsers,
        seconds=seconds,
        distinct=len(alone),
        sent=counts.sent,
        refused=counts.refused,
        answer_seconds=tuple(counts.answer_seconds),
        wrong=tuple(counts.wrong),
        lost=tuple(counts.lost),
    )


async def _use_api(
    visitor: Visitor, own: Sequence[Request], alone: dict[Request, Answers], end: float, counts: _Counts
) -> None:
    turn = 0
    while time.monotonic() < end:
        request = own[turn % len(own)]
        turn += 1
        comparison = await _answered(compare, visitor, request, counts)
        if comparison is not None and Answers.read(comparison) != alone[request]:
            counts.wrong.append(f"{request.question!r} at K = {request.layer}: {Answers.read(comparison)}")


async def _browse(
    visitor: Visitor, own: Sequence[Request], alone: dict[Request, Answers], end: float, counts: _Counts
) -> None:
    asked: list[Request] = []
    while time.monotonic() < end:
        request = own[len(asked) % len(own)]
        shown = await _answered(_run, visitor, request, counts)
        if shown is None:
            continue
        asked.append(request)
        cards = _answer_on(shown["full"]), _answer_on(shown["withdrawn"])
        if cards != (alone[request].full, alone[request].withdrawn):
            counts.wrong.append(f"{request.question!r} at K = {request.layer}, on the page: {cards}")
        latest = [f"{past.question} K = {past.layer}" for past in reversed(asked[-KEPT_COMPARISONS:])]
        if _history_on(shown["history-table"]) != latest:
            counts.wrong.append(f"the page's history isn't the visitor's own: {_history_on(shown['history-table'])}")


async def _answered(how: Any, visitor: Visitor, request: Request, counts: _Counts) -> Any:
    """What `how` gives, at the latest try; None for a request that is lost."""
    counts.sent += 1
    begun = time.monotonic()
    try:
        async with asyncio.timeout(LONGEST_WAIT_SECONDS):
            while True:
                try:
                    answer = await how(visitor, request)
                    break
                except QueueFullError:
                    counts.refused += 1
                    await asyncio.sleep(random.uniform(0.5, 1.5))
    except TimeoutError:
        counts.lost.append(f"no answer within {LONGEST_WAIT_SECONDS:g} s")
        return None
    except (FailedError, httpx.HTTPError) as error:
        counts.lost.append(f"{type(error).__name__}: {error}")
        return None
    counts.answer_seconds.append(time.monotonic() - begun)
    return answer


async def _run(visitor: Visitor, request: Request) -> dict[str, Any]:
    """What the page shows after a click on "Run", by the `elem_id`s of its parts."""
    picture = await visitor.upload(request.picture)
    run = visitor.page.calls["run"]
    typed = {
        "picture": picture,
        "question": request.question,
        "layer": request.layer,
        "max-new-tokens": request.max_new_tokens,
    }
    begin = visitor.page.calls["begin_run"]
    await visitor.call_at_once("begin_run", [None] * len(begin.inputs))
    values = await visitor.call("run", [typed.get(name or "") for name in run.inputs])
    shown = {name: value for name, value in zip(run.outputs, values, strict=True) if name}
    if 'role="alert"' in shown["verdict"]:
        raise refusal(unescape(re.sub("<[^>]*>", "", shown["verdict"])))
    return shown


def _answer_on(card: str) -> str | None:
    found = re.search(r'<p class="answer"[^>]*>(.*?)</p>', card, re.DOTALL)
    return unescape(found[1]).strip() if found else None


def _history_on(table: str | None) -> list[str]:
    rows = re.findall(r"<tr><th[^>]*>\d+</th><td>(.*?)</td><td>(\d+)</td>", table or "", re.DOTALL)
    return [f"{unescape(question)} K = {layer}" for question, layer in rows]
