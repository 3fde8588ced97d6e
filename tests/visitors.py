"""Visitors of the real server, on gradio_client: by the API, or on the page.

gradio_client refuses the callbacks of the page (`api_visibility="private"`), and it knows nothing of what stands where.
`call_on_page` lets it call them, and names what goes in and comes out by the components' `elem_id`s.
"""

import os
import random
import re
import time
from collections.abc import Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import httpx
from gradio_client import Client, handle_file
from gradio_client.client import Job
from gradio_client.utils import QueueError

from vtw_demo.comparison.samples import embedded_samples

LONGEST_WAIT_SECONDS = 300.0
QUEUE_FULL = "The queue is full"


class QueueFullError(OSError):
    """The server has said that it takes no more requests for now."""


class FailedError(OSError):
    """The server has given no answer."""


@dataclass(frozen=True)
class Request:
    """`picture` is a PNG file."""

    picture: Path
    question: str
    layer: int
    max_new_tokens: int

    def __str__(self) -> str:
        return f"{self.question!r} at K = {self.layer}"


def random_requests(count: int, layers: int, longest_answer: int, folder: Path, seed: int = 0) -> list[Request]:
    """Requests with pictures, questions, withdrawal layers up to `layers` and lengths of their own, the same for the
    same seed; the pictures are written to `folder`."""
    generator = random.Random(seed)
    requests = []
    for number, sample in enumerate(embedded_samples(count, seed)):
        picture = folder / f"{seed}-{number}.png"
        sample.picture.save(picture)
        layer, length = generator.randint(1, layers), generator.randint(1, longest_answer)
        requests.append(Request(picture, sample.question, layer, length))
    return requests


def connect(url: str) -> Client:
    """A visitor with a session of their own. Proxies of the environment are for other machines."""
    # gradio_client's argument alone doesn't turn its telemetry off.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    network = {"trust_env": False, "timeout": LONGEST_WAIT_SECONDS}
    return Client(url, verbose=False, download_files=False, analytics_enabled=False, httpx_kwargs=network)


def compare(client: Client, request: Request, seconds: float = LONGEST_WAIT_SECONDS) -> dict[str, Any]:
    """The comparison that the API gives within so many seconds. Raises QueueFullError, and FailedError without one."""
    asked = (handle_file(request.picture), request.question, request.layer, request.max_new_tokens)
    return _answer(client.submit(*asked, api_name="/compare"), seconds)


def run_on_page(client: Client, request: Request, seconds: float = LONGEST_WAIT_SECONDS) -> dict[str, Any]:
    """What the page shows after a click on "Run"; raises as `compare` does."""
    begun = time.monotonic()
    call_on_page(client, "begin_run", {}, seconds)
    typed = {
        "picture": handle_file(request.picture),
        "question": request.question,
        "layer": request.layer,
        "max-new-tokens": request.max_new_tokens,
        "detail": "usual",
    }
    shown, _ = call_on_page(client, "run", typed, seconds - (time.monotonic() - begun))
    if 'role="alert"' in shown["verdict"]:
        raise _refusal(unescape(re.sub("<[^>]*>", "", shown["verdict"])))
    return shown


def call_on_page(
    client: Client, name: str, typed: Mapping[str, Any], seconds: float = LONGEST_WAIT_SECONDS
) -> tuple[dict[str, Any], list[str]]:
    """What a callback of the page leaves in each component with an `elem_id`, None where it sent nothing; and what the
    visitor was told in passing. `typed` is what other components hold, by `elem_id`."""
    (callback,) = (found for found in client.config["dependencies"] if found["api_name"] == name)
    endpoint = client.endpoints[callback["id"]]
    endpoint.is_valid = True
    names = {part["id"]: part["props"].get("elem_id") for part in client.config["components"]}
    kinds = zip(callback["inputs"], endpoint.input_component_types, strict=True)
    # gradio_client puts in the components that hold a session's state, and leaves out their values.
    values = [typed.get(names[part]) for part, kind in kinds if not kind.is_state]
    job = client.submit(*values, fn_index=callback["id"])
    last = _answer(job, seconds)
    kinds = zip(callback["outputs"], endpoint.output_component_types, strict=True)
    outputs = [names[part] for part, kind in kinds if not kind.skip]
    shown: dict[str, Any] = dict.fromkeys(filter(None, outputs))
    for sent in (*job.outputs(), last):
        for output, value in zip(outputs, sent if len(outputs) > 1 else (sent,), strict=True):
            is_update = isinstance(value, dict) and value.get("__type__") == "update"
            if output and (not is_update or "value" in value):
                shown[output] = value["value"] if is_update else value
    updates, notices = job.communicator.updates, []
    while not updates.empty():
        log = getattr(updates.get_nowait(), "log", None)
        notices += [log[0]] if log else []
    return shown, notices


def _answer(job: Job, seconds: float) -> Any:
    try:
        return job.result(timeout=seconds)
    except QueueError as error:
        raise QueueFullError(str(error)) from error
    except TimeoutError as error:
        job.cancel()
        raise FailedError(f"no answer within {LONGEST_WAIT_SECONDS:g} s") from error
    # gradio_client looks for what an ended connection has left of an answer.
    except (CancelledError, KeyError) as error:
        raise FailedError("the connection ended without an answer") from error
    # What the server says, or what gradio_client does where it can't be understood, is a ValueError.
    except (ValueError, httpx.HTTPError) as error:
        raise _refusal(str(error) or repr(error)) from error


def _refusal(sentence: str) -> QueueFullError | FailedError:
    return QueueFullError(sentence) if QUEUE_FULL in sentence else FailedError(sentence)
