"""A visitor of the page over plain HTTP: what a browser or `gradio_client` sends, without their weight."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from gradio_client.utils import apply_diff

QUEUE_FULL = "The queue is full"


class QueueFullError(OSError):
    """The server has said that it takes no more requests for now."""


class FailedError(OSError):
    """The server has given no answer."""


def refusal(sentence: str) -> Exception:
    """What a sentence of the server in place of an answer is: full for now, or a failure."""
    return QueueFullError(sentence) if QUEUE_FULL in sentence else FailedError(sentence)


@dataclass(frozen=True)
class Call:
    """A callback of the page: its number, and the `elem_id`s (None without one) of what goes in and comes out."""

    number: int
    inputs: tuple[str | None, ...]
    outputs: tuple[str | None, ...]


@dataclass(frozen=True)
class Page:
    """`calls` by their names."""

    api: str
    calls: Mapping[str, Call]

    @classmethod
    async def read(cls, http: httpx.AsyncClient, url: str) -> Page:
        response = await http.get(f"{url}/config")
        response.raise_for_status()
        config = response.json()
        elements = {part["id"]: part["props"].get("elem_id") or None for part in config["components"]}
        calls = {
            found["api_name"]: Call(
                found["id"],
                tuple(elements.get(part) for part in found["inputs"]),
                tuple(elements.get(part) for part in found["outputs"]),
            )
            for found in config["dependencies"]
        }
        return cls(f"{url}{config['api_prefix']}", calls)


class Visitor:
    """One session of the page; `notices` are what it was told in passing."""

    def __init__(self, http: httpx.AsyncClient, page: Page) -> None:
        self.http = http
        self.page = page
        self.session = secrets.token_hex(8)
        self.notices: list[str] = []

    async def upload(self, picture: bytes) -> dict[str, Any]:
        """Hand over a PNG file; the result stands for it in a call."""
        response = await self.http.post(
            f"{self.page.api}/upload", files=[("files", ("picture.png", picture, "image/png"))]
        )
        response.raise_for_status()
        return {"path": response.json()[0], "orig_name": "picture.png", "meta": {"_type": "gradio.FileData"}}

    async def call_at_once(self, name: str, values: Sequence[Any]) -> None:
        """A call that doesn't wait for the model."""
        body = {"data": list(values), "fn_index": self.page.calls[name].number, "session_hash": self.session}
        response = await self.http.post(f"{self.page.api}/run/{name}", json=body)
        if response.is_error:
            raise FailedError(f"{name}: {response.status_code} {response.text[:200]}")

    async def call(self, name: str, values: Sequence[Any]) -> list[Any]:
        """A call that waits for the model: the last value of each output, None for those that got none.

        Raises QueueFullError where the server says that it is, and FailedError where there is no answer.
        """
        number = self.page.calls[name].number
        body = {"data": list(values), "fn_index": number, "session_hash": self.session}
        joined = await self.http.post(f"{self.page.api}/queue/join", json=body)
        if joined.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            raise refusal(joined.text)
        if joined.is_error:
            raise FailedError(f"{joined.status_code} {joined.text[:200]}")
        event = joined.json()["event_id"]
        streamed: list[Any] = []
        latest: list[Any] = []
        is_complete = False
        stream = self.http.stream("GET", f"{self.page.api}/queue/data", params={"session_hash": self.session})
        async with stream as response:
            # To the stream's own end: the session's next call opens another one.
            async for line in response.aiter_lines():
                message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                kind = message.get("msg")
                if kind == "unexpected_error":
                    raise FailedError(message.get("message") or "an unexpected error")
                if kind == "log":
                    self.notices.append(message["log"])
                if message.get("event_id") != event or kind not in ("process_generating", "process_completed"):
                    continue
                if not message["success"]:
                    raise refusal(str(message["output"].get("error") or "the server gave no reason"))
                sent = message["output"]["data"]
                if kind == "process_completed":
                    is_complete = True
                else:
                    # After the first ones, edits of those before.
                    sent = [apply_diff(*pair) for pair in zip(streamed, sent, strict=True)] if streamed else sent
                    streamed = sent
                latest = _updated(latest, sent)
        if not is_complete:
            raise FailedError("the connection ended without an answer")
        return latest


def _updated(values: list[Any], sent: list[Any]) -> list[Any]:
    """Each output's value, or the earlier one where what was sent leaves it as it is."""
    if not values:
        values = [None] * len(sent)
    new = []
    for old, value in zip(values, sent, strict=True):
        if isinstance(value, dict) and value.get("__type__") == "update":
            new.append(value.get("value", old))
        else:
            new.append(value)
    return new
