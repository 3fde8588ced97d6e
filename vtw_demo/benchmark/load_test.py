"""`python -m vtw_demo loadtest`: the real server under many visitors at once, and its memory over many comparisons."""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import date
from html import unescape
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
from gradio_client import Client

from vtw_demo.benchmark.app_process import AppProcess, app_process
from vtw_demo.benchmark.visitors import (
    LONGEST_WAIT_SECONDS,
    FailedError,
    QueueFullError,
    Request,
    compare,
    connect,
    random_requests,
    run_on_page,
)
from vtw_demo.comparison.machine import this_machine
from vtw_demo.errors import UserError
from vtw_demo.files import write_whole
from vtw_demo.formats import MISSING, amount

HELP = "let many visitors ask the real server at once, and watch its memory"
DESCRIPTION = (
    "Start the page with the embedded model as a process of its own, on an address that only this machine reaches. "
    "Many visitors ask it at once, each with pictures, questions and withdrawal layers of their own, and every answer "
    "is held against what the same request got alone. Then another server makes many comparisons while its memory is "
    "read. The exit code is 1 where an answer differs, a request is lost, memory grows by more than 5 %, or the server "
    "doesn't end within 10 s of SIGTERM."
)
MOST_CLIENTS = 1000
REQUESTS_EACH = 2
LONGEST_ANSWER = 48
# One in so many visitors uses the page, the others its API.
VISITORS_A_BROWSER = 10
KEPT_COMPARISONS = 30
# Memory is read after each so many comparisons, whose answers are cut after 2 tokens; four are made at once.
EVERY = 50
ANSWER_TOKENS = 2
AT_ONCE = 4
LARGEST_GROWTH = 1.05
SHOWN_SENTENCES = 5
QUANTILES = (("half of them", 0.5), ("90 %", 0.9), ("99 %", 0.99), ("all", 1.0))

Measured = TypeVar("Measured")
# The text and the tokens of each run: what has to be the same whoever else is there.
Answers = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Server:
    """A running app whose model has `layers`; it keeps visitors' pictures in `uploads`, theirs are in `pictures`."""

    app: AppProcess
    uploads: Path
    pictures: Path
    layers: int


@dataclass(frozen=True)
class Load:
    """What came of `clients` visitors who asked for `seconds`, `browsers` of them on the page, the others by the API.

    - `distinct`: how many different requests there were; each was asked alone first.
    - `sent`: requests, of which each was answered or is in `lost`; `answer_seconds` has those of the answered.
    - `refused`: how often the server said that its queue is full; the visitor tried again.
    - `wrong`: sentences about answers that differ from those that the same request gets alone, and about pages that
      showed another visitor's comparison.
    - `lost`: sentences about requests that got no answer.
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


@dataclass(frozen=True)
class Visit:
    """What came of one request: `answer` and `seconds` are None where it is lost."""

    refused: int
    answer: dict[str, Any] | None = None
    seconds: float | None = None
    wrong: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """After so many comparisons: the server's resident memory with its children's, its threads, its open files and
    sockets, and the visitors' pictures that it keeps."""

    comparisons: int
    resident_bytes: int
    threads: int
    open_files: int
    uploads: int
    upload_bytes: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clients", type=int, default=50, help="visitors at once; one in ten of them uses the page")
    parser.add_argument("--seconds", type=float, default=120, help="how long they go on asking; 0 leaves this out")
    parser.add_argument(
        "--comparisons", type=int, default=1000, help="read memory over so many comparisons; 0 leaves this out"
    )
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address; no other is taken")
    parser.add_argument("--port", type=int, help="by default a free one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to this file, too")


def run(options: argparse.Namespace) -> int:
    clients, seconds, comparisons = options.clients, options.seconds, options.comparisons
    if not 1 <= clients <= MOST_CLIENTS:
        raise UserError(f"There must be from 1 to {MOST_CLIENTS} clients; this is {clients}.")
    if not 0 <= seconds <= 3600:
        raise UserError(f"The seconds must be from 0 to 3600; this is {seconds:g}.")
    if comparisons != 0 and comparisons <= EVERY:
        raise UserError(f"Growth is measured from {EVERY} comparisons on: ask for more; this is {comparisons}.")
    machine, today = this_machine(), date.today().isoformat()
    print(f"{today}; {machine}", end="\n\n")
    result: dict[str, Any] = {"date": today, "machine": machine.to_json()}
    misses: list[str] = []
    if seconds:
        load, ending = _with_server(lambda server: measure_load(server, clients, seconds), options)
        print(load_table(load), end="\n\n")
        result["load"] = asdict(load)
        misses += load_misses(load) + ending
    if comparisons:
        readings, ending = _with_server(lambda server: measure_memory(server, clients, comparisons), options)
        print(memory_table(readings), end="\n\n")
        result["memory"] = {"readings": [asdict(reading) for reading in readings]}
        misses += memory_misses(readings) + ending
    result["missed"] = misses
    print("\n".join(misses) or "Every bar is met.")
    if options.json:
        write_whole(options.json, json.dumps(result, indent=1).encode())
        print(options.json)
    return 1 if misses else 0


def _with_server(measure: Callable[[Server], Measured], options: argparse.Namespace) -> tuple[Measured, list[str]]:
    """What `measure` finds on a server of its own, and a sentence if that doesn't end well."""
    with TemporaryDirectory(prefix="vtw-loadtest-") as name:
        uploads, pictures = Path(name, "uploads"), Path(name, "pictures")
        pictures.mkdir()
        environment = {
            "GRADIO_TEMP_DIR": str(uploads),
            "XDG_CACHE_HOME": str(Path(name, "cache")),
            "HF_HUB_OFFLINE": "1",
            "no_proxy": options.host,
        }
        with app_process((), environment, options.host, options.port) as app:
            # Also warms the server up.
            first = compare(connect(app.url), random_requests(1, 1, LONGEST_ANSWER, pictures)[0])
            found = measure(Server(app, uploads, pictures, first["layers"]))
            ending = app.end()
    return found, [ending] if ending else []


def measure_load(server: Server, clients: int, seconds: float) -> Load:
    """Ask all requests one after the other, then all again by `clients` visitors at once for so many seconds.

    Each visitor has requests of their own, asked again and again, and is waited for at the end. Raises QueueFullError
    and FailedError where a request gets no answer alone.
    """
    requests = random_requests(REQUESTS_EACH * clients, server.layers, LONGEST_ANSWER, server.pictures)
    first = connect(server.app.url)
    alone = {request: _answers(compare(first, request)) for request in requests}
    visitors = [connect(server.app.url) for _ in range(clients)]
    browsers = clients // VISITORS_A_BROWSER
    end = time.monotonic() + seconds
    with ThreadPoolExecutor(clients) as pool:
        going = [
            pool.submit(_go_on_asking, visitor, index < browsers, requests[index::clients], alone, end)
            for index, visitor in enumerate(visitors)
        ]
        visits = [visit for one in going for visit in one.result()]
    return Load(
        clients=clients,
        browsers=browsers,
        seconds=seconds,
        distinct=len(alone),
        sent=len(visits),
        refused=sum(visit.refused for visit in visits),
        answer_seconds=tuple(visit.seconds for visit in visits if visit.seconds is not None),
        wrong=tuple(sentence for visit in visits for sentence in visit.wrong),
        lost=tuple(sentence for visit in visits for sentence in visit.lost),
    )


def _go_on_asking(
    visitor: Client, is_on_page: bool, own: Sequence[Request], alone: dict[Request, Answers], end: float
) -> list[Visit]:
    visits: list[Visit] = []
    answered: list[Request] = []
    # Each asks once at least.
    while not visits or time.monotonic() < end:
        request = own[len(visits) % len(own)]
        visit = _ask(visitor, is_on_page, request)
        if visit.answer is not None:
            answered.append(request)
            wrong = _wrong_on_page if is_on_page else _wrong
            visit = replace(visit, answer=None, wrong=tuple(wrong(visit.answer, answered, alone[request])))
        visits.append(visit)
    return visits


def _ask(visitor: Client, is_on_page: bool, request: Request) -> Visit:
    """Again while the queue is full."""
    begun, refused = time.monotonic(), 0
    while True:
        left = LONGEST_WAIT_SECONDS - (time.monotonic() - begun)
        try:
            answer = (run_on_page if is_on_page else compare)(visitor, request, left)
            return Visit(refused, answer, time.monotonic() - begun)
        except QueueFullError:
            refused += 1
            time.sleep(random.uniform(0.5, 1.5))
        except FailedError as error:
            return Visit(refused, lost=(str(error),))


def _answers(comparison: dict[str, Any]) -> Answers:
    return tuple((comparison[run]["answer"], tuple(comparison[run]["tokens"])) for run in ("full", "withdrawn"))


def _wrong(comparison: dict[str, Any], answered: Sequence[Request], alone: Answers) -> Iterator[str]:
    if _answers(comparison) != alone:
        yield f"{answered[-1]}: {_answers(comparison)}"


def _wrong_on_page(shown: dict[str, Any], answered: Sequence[Request], alone: Answers) -> Iterator[str]:
    cards = [_answer_on(shown["full"]), _answer_on(shown["withdrawn"])]
    if cards != [answer for answer, _ in alone]:
        yield f"{answered[-1]}, on the page: {cards}"
    rows = re.findall(r"<tr><th[^>]*>\d+</th><td>(.*?)</td><td>(\d+)</td>", shown["history-table"] or "", re.DOTALL)
    history = [(unescape(question), int(layer)) for question, layer in rows]
    if history != [(past.question, past.layer) for past in reversed(answered[-KEPT_COMPARISONS:])]:
        yield f"the page's history isn't the visitor's own: {history}"


def _answer_on(card: str) -> str | None:
    found = re.search(r'<p class="answer"[^>]*>(.*?)</p>', card, re.DOTALL)
    return unescape(found[1]).strip() if found else None


def measure_memory(server: Server, clients: int, comparisons: int) -> list[Reading]:
    """Read after 50 comparisons, and after each 50 more up to `comparisons`: each with a picture of its own, its
    answers cut after 2 tokens, by so many visitors in turn, four at once.

    Gradio keeps a copy of the page for each visitor: more than 50 would be measured, too. Raises QueueFullError and
    FailedError where one gets no answer.
    """
    visitors = [connect(server.app.url) for _ in range(min(clients, EVERY))]
    readings = []
    with ThreadPoolExecutor(min(AT_ONCE, len(visitors))) as pool:
        for made in range(0, comparisons, EVERY):
            number = min(EVERY, comparisons - made)
            requests = random_requests(number, server.layers, ANSWER_TOKENS, server.pictures, seed=made)
            for _ in pool.map(compare, cycle(visitors), requests):
                pass
            readings.append(_read(server, made + number))
    return readings


def _read(server: Server, comparisons: int) -> Reading:
    process = server.app.process
    sizes = [path.stat().st_size for path in server.uploads.rglob("*") if path.is_file()]
    return Reading(
        comparisons=comparisons,
        resident_bytes=sum(one.memory_info().rss for one in (process, *process.children(recursive=True))),
        threads=process.num_threads(),
        open_files=process.num_fds(),
        uploads=len(sizes),
        upload_bytes=sum(sizes),
    )


def load_table(load: Load) -> str:
    """As Markdown."""
    times = load.answer_seconds
    rows = [
        ("visitors at once", f"{load.clients}, {load.browsers} of them on the page, the others by the API"),
        ("for", f"{load.seconds:g} s, {load.distinct} different requests"),
        ("requests sent", f"{load.sent}"),
        ("answered", f"{len(times)}"),
        ("as alone", f"{len(times) - len(load.wrong)}"),
        ("told that the queue is full, tried again", f"{load.refused}"),
        ("lost", f"{len(load.lost)}"),
    ]
    for name, share in QUANTILES:
        seconds = f"{np.quantile(times, share, method='nearest'):.2f} s" if times else MISSING
        rows.append((f"answered within, {name}", seconds))
    return _table(("what", "figure"), rows)


def memory_table(readings: Sequence[Reading]) -> str:
    """As Markdown."""
    heads = ("comparisons", "resident memory", "to the first", "threads", "open files", "pictures kept", "their bytes")
    rows = [
        (
            f"{reading.comparisons}",
            amount(reading.resident_bytes, "B"),
            f"{reading.resident_bytes / readings[0].resident_bytes:.3f}",
            f"{reading.threads}",
            f"{reading.open_files}",
            f"{reading.uploads}",
            amount(reading.upload_bytes, "B"),
        )
        for reading in readings
    ]
    return _table(heads, rows)


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def load_misses(load: Load) -> list[str]:
    """A sentence for each bar that was missed."""
    misses = [] if load.answer_seconds else ["No request was answered."]
    for what, sentences in (("answers that aren't those given alone", load.wrong), ("lost requests", load.lost)):
        if sentences:
            misses.append(f"{len(sentences)} {what}: {'; '.join(sentences[:SHOWN_SENTENCES])}.")
    return misses


def memory_misses(readings: Sequence[Reading]) -> list[str]:
    """A sentence where memory has grown by more than 5 %; and how steeply it rises over the second half, where the
    allocator's own reserves are full: a leak goes on rising, fragmentation levels off."""
    first, last, half = readings[0], readings[-1], readings[len(readings) // 2 :]
    growth = last.resident_bytes / first.resident_bytes
    if growth <= LARGEST_GROWTH:
        return []
    rising = ""
    if len(half) > 1:
        made, held = [reading.comparisons for reading in half], [reading.resident_bytes for reading in half]
        slope = max(statistics.linear_regression(made, held).slope, 0)
        rising = f", in the second half by {amount(slope, 'B')} a comparison"
    return [
        f"Memory after {last.comparisons} comparisons is {100 * (growth - 1):.1f} % above that after "
        f"{first.comparisons}; at most {100 * (LARGEST_GROWTH - 1):.0f} % are allowed{rising}."
    ]
