"""`python -m tests.load`: the real server under many visitors at once, and its memory over many comparisons."""

import argparse
import json
import random
import re
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import date
from html import unescape
from itertools import chain, cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
from gradio_client import Client

from tests.app_process import AppProcess, app_process
from tests.visitors import (
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

DESCRIPTION = (
    "Start the page with the embedded model as a process of its own, on an address that only this machine reaches. "
    "Many visitors ask it at once, each with pictures, questions and withdrawal layers of their own, and every answer "
    "is held against what the same request got alone. Then another server makes many comparisons while its memory is "
    "read. The exit code is 1 where an answer differs, a request is lost, memory grows by more than 5 %, or the server "
    "doesn't end within 10 s of SIGTERM. With --replicas N it asks servers of one replica and of N "
    "instead, each of one thread, in turn, and says the ratio of their answers a second; memory is left out."
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
ROUNDS = 2
QUANTILES = (("half of them", 0.5), ("90 %", 0.9), ("99 %", 0.99), ("all", 1.0))

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
    - `took_seconds`: until the last answer; `alone_seconds`: what each distinct request took alone.
    - `cpu_seconds`: meanwhile, of the page, its replicas, the rest of Ray, and this process, who are the visitors.
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
    took_seconds: float
    alone_seconds: tuple[float, ...]
    cpu_seconds: dict[str, float]


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


def main(arguments: Sequence[str] | None = None) -> int:
    """The result is the exit code: 1 where a bar is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.load", description=DESCRIPTION, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=50, help="visitors at once; one in ten of them uses the page")
    parser.add_argument("--seconds", type=float, default=120, help="how long they go on asking; 0 leaves this out")
    parser.add_argument(
        "--comparisons", type=int, default=1000, help="read memory over so many comparisons; 0 leaves this out"
    )
    parser.add_argument("--replicas", type=int, default=0, help="hold so many replicas against one")
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address; no other is taken")
    parser.add_argument("--port", type=int, help="by default a free one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result to this file, too")
    try:
        return run(parser.parse_args(arguments))
    except UserError as error:
        parser.error(str(error))


def run(options: argparse.Namespace) -> int:
    clients, seconds, comparisons = options.clients, options.seconds, options.comparisons
    if not 1 <= clients <= MOST_CLIENTS:
        raise UserError(f"There must be from 1 to {MOST_CLIENTS} clients; this is {clients}.")
    if not 0 <= seconds <= 3600:
        raise UserError(f"The seconds must be from 0 to 3600; this is {seconds:g}.")
    if comparisons != 0 and comparisons <= EVERY:
        raise UserError(f"Growth is measured from {EVERY} comparisons on: ask for more; this is {comparisons}.")
    if not 0 <= options.replicas <= 64 or options.replicas == 1:
        raise UserError(f"From 2 to 64 replicas are held against one; this is {options.replicas}.")
    machine, today = this_machine(), date.today().isoformat()
    print(f"{today}; {machine}", end="\n\n")
    result: dict[str, Any] = {"date": today, "machine": machine.to_json()}
    misses: list[str] = []
    if options.replicas:
        loads = measure_replicas(options, misses)
        print(replicas_table(loads), end="\n\n")
        result["replicas"] = {str(number): [asdict(load) for load in of] for number, of in loads.items()}
    elif seconds:
        with _running_server(options, misses) as server:
            load = measure_load(server, clients, seconds)
        print(load_table(load), end="\n\n")
        result["load"] = asdict(load)
        misses += load_misses(load)
    if comparisons and not options.replicas:
        with _running_server(options, misses) as server:
            readings = measure_memory(server, clients, comparisons)
        print(memory_table(readings), end="\n\n")
        result["memory"] = {"readings": [asdict(reading) for reading in readings]}
        misses += memory_misses(readings)
    result["missed"] = misses
    print("\n".join(misses) or "Every bar is met.")
    if options.json:
        write_whole(options.json, json.dumps(result, indent=1).encode())
        print(options.json)
    return 1 if misses else 0


@contextmanager
def _running_server(options: argparse.Namespace, misses: list[str], replicas: int = 0) -> Iterator[Server]:
    """A server of its own; a sentence is added to `misses` if it doesn't end well."""
    with TemporaryDirectory(prefix="vtw-loadtest-") as name:
        uploads, pictures = Path(name, "uploads"), Path(name, "pictures")
        pictures.mkdir()
        environment = {
            "GRADIO_TEMP_DIR": str(uploads),
            "XDG_CACHE_HOME": str(Path(name, "cache")),
            "HF_HUB_OFFLINE": "1",
            "no_proxy": options.host,
        }
        arguments = ("--model", "embedded", "--replicas", str(replicas)) if replicas else ()
        environment |= {"OMP_NUM_THREADS": "1"} if replicas else {}
        with app_process(arguments, environment, options.host, options.port) as app:
            # Also warms the server up.
            first = compare(connect(app.url), random_requests(1, 1, LONGEST_ANSWER, pictures)[0])
            yield Server(app, uploads, pictures, first["layers"])
            if ending := app.end():
                misses.append(ending)


def measure_load(server: Server, clients: int, seconds: float) -> Load:
    """Ask all requests one after the other, then all again by `clients` visitors at once for so many seconds.

    Each visitor has requests of their own, asked again and again, and is waited for at the end.
    """
    requests = random_requests(REQUESTS_EACH * clients, server.layers, LONGEST_ANSWER, server.pictures)
    first = connect(server.app.url)
    alone, alone_seconds = {}, []
    for request in requests:
        begun = time.monotonic()
        alone[request] = _answers(compare(first, request))
        alone_seconds.append(time.monotonic() - begun)
    visitors = [connect(server.app.url) for _ in range(clients)]
    browsers = clients // VISITORS_A_BROWSER
    before, begun = _cpu_seconds(server), time.monotonic()
    end = begun + seconds
    asking = [
        _go_on_asking(visitor, index < browsers, requests[index::clients], alone, end)
        for index, visitor in enumerate(visitors)
    ]
    with ThreadPoolExecutor(clients) as pool:
        events: list[tuple[str, Any]] = list(chain.from_iterable(pool.map(list, asking)))
    took_seconds, after = time.monotonic() - begun, _cpu_seconds(server)

    def of(wanted: str) -> tuple[Any, ...]:
        return tuple(value for what, value in events if what == wanted)

    return Load(
        clients=clients,
        browsers=browsers,
        seconds=seconds,
        distinct=len(alone),
        sent=len(of("answered")) + len(of("lost")),
        refused=len(of("refused")),
        answer_seconds=of("answered"),
        wrong=of("wrong"),
        lost=of("lost"),
        took_seconds=took_seconds,
        alone_seconds=tuple(alone_seconds),
        cpu_seconds={who: after[who] - spent for who, spent in before.items()},
    )


def measure_replicas(options: argparse.Namespace, misses: list[str]) -> dict[int, list[Load]]:
    """The load of one replica and of `options.replicas`, in turn."""
    loads: dict[int, list[Load]] = {1: [], options.replicas: []}
    for _ in range(ROUNDS):
        for number, of in loads.items():
            with _running_server(options, misses, number) as server:
                of.append(measure_load(server, options.clients, options.seconds))
            misses += load_misses(of[-1])
    return loads


def _cpu_seconds(server: Server) -> dict[str, float]:
    """What each part of the server has computed so far, and this process."""
    spent = {"page": 0.0, "replicas": 0.0, "Ray": 0.0, "visitors": sum(psutil.Process().cpu_times()[:2])}
    for process in (server.app.process, *server.app.process.children(recursive=True)):
        with suppress(psutil.Error):
            is_replica = "".join(process.cmdline()[:1]).startswith("ray::ServeReplica")
            part = "page" if process.pid == server.app.process.pid else "replicas" if is_replica else "Ray"
            spent[part] += sum(process.cpu_times()[:2])
    return spent


def _go_on_asking(
    visitor: Client, is_on_page: bool, own: Sequence[Request], alone: dict[Request, Answers], end: float
) -> Iterator[tuple[str, Any]]:
    """What came of each request: "answered", with its seconds, or "lost" or "wrong", with a sentence; and before that
    each time that it was "refused"."""
    ask, check = (run_on_page, _wrong_on_page) if is_on_page else (compare, _wrong)
    answered: list[Request] = []
    for number, request in enumerate(cycle(own)):
        if number and time.monotonic() >= end:  # each asks once at least
            return
        begun = time.monotonic()
        while True:
            try:
                answer = ask(visitor, request, LONGEST_WAIT_SECONDS - (time.monotonic() - begun))
            except QueueFullError:
                yield "refused", 1
                time.sleep(random.uniform(0.5, 1.5))
                continue
            except FailedError as error:
                yield "lost", str(error)
            else:
                yield "answered", time.monotonic() - begun
                answered.append(request)
                yield from (("wrong", sentence) for sentence in check(answer, answered, alone[request]))
            break


def _answers(comparison: dict[str, Any]) -> Answers:
    return tuple((comparison[run]["answer"], tuple(comparison[run]["tokens"])) for run in ("full", "withdrawn"))


def _wrong(comparison: dict[str, Any], answered: Sequence[Request], alone: Answers) -> Iterator[str]:
    if _answers(comparison) != alone:
        yield f"{answered[-1]}: {_answers(comparison)}"


def _wrong_on_page(shown: dict[str, Any], answered: Sequence[Request], alone: Answers) -> Iterator[str]:
    found = [re.search(r'<p class="answer"[^>]*>(.*?)</p>', shown[run], re.DOTALL) for run in ("full", "withdrawn")]
    # Their words: the first that differs is marked.
    texts = [re.sub("<mark>⌀</mark>|<[^>]*>", "", answer[1]) if answer else "" for answer in found]
    cards = [unescape(text).split() for text in texts]
    if cards != [answer.split() for answer, _ in alone]:
        yield f"{answered[-1]}, on the page: {cards}"
    rows = re.findall(r"<tr><th[^>]*>\d+</th><td>(.*?)</td><td>(\d+)</td>", shown["history-table"] or "", re.DOTALL)
    history = [(unescape(question), int(layer)) for question, layer in rows]
    if history != [(past.question, past.layer) for past in reversed(answered[-KEPT_COMPARISONS:])]:
        yield f"the page's history isn't the visitor's own: {history}"


def measure_memory(server: Server, clients: int, comparisons: int) -> list[Reading]:
    """Read after 50 comparisons, and after each 50 more up to `comparisons`: each with a picture of its own, its
    answers cut after 2 tokens, by so many visitors in turn, four at once.

    Gradio keeps a copy of the page for each visitor: more than 50 would be measured, too.
    """
    visitors = [connect(server.app.url) for _ in range(min(clients, EVERY))]
    readings = []
    with ThreadPoolExecutor(min(AT_ONCE, len(visitors))) as pool:
        for made in range(0, comparisons, EVERY):
            number = min(EVERY, comparisons - made)
            requests = random_requests(number, server.layers, ANSWER_TOKENS, server.pictures, seed=made)
            for _ in pool.map(compare, cycle(visitors), requests):
                pass
            process = server.app.process
            resident = sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))
            sizes = [path.stat().st_size for path in server.uploads.rglob("*") if path.is_file()]
            held = (resident, process.num_threads(), process.num_fds(), len(sizes), sum(sizes))
            readings.append(Reading(made + number, *held))
    return readings


def load_table(load: Load) -> str:
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
    return markdown_table(("what", "figure"), rows)


def replicas_table(loads: dict[int, list[Load]]) -> str:
    """Throughput, waits and who computed, over all rounds, and the ratio of the throughputs in each round."""
    single, several = loads.values()
    rows = []
    for number, of in loads.items():
        times = [seconds for load in of for seconds in load.answer_seconds]
        took = sum(load.took_seconds for load in of)
        cores = {who: sum(load.cpu_seconds[who] for load in of) / took for who in of[0].cpu_seconds}
        waits = (
            [f"{np.quantile(times, share, method='nearest'):.1f} s" for share in (0.5, 0.9)] if times else 2 * [MISSING]
        )
        computed = ", ".join(f"{who} {used:.2f}" for who, used in cores.items())
        rows.append((str(number), str(len(times)), f"{len(times) / took:.2f}", *waits, computed))
    heads = ("replicas", "answered", "answers a second", "half within", "90 % within", "cores used")
    ratios = [_throughput(after) / _throughput(before) for before, after in zip(single, several, strict=True)]
    return f"{markdown_table(heads, rows)}\n\nRatio, by round: {', '.join(f'{ratio:.2f}' for ratio in ratios)}."


def _throughput(load: Load) -> float:
    return len(load.answer_seconds) / load.took_seconds


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(line)} |" for line in (heads, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(heads)}", *lines[1:]])


def memory_table(readings: Sequence[Reading]) -> str:
    heads = ("comparisons", "resident memory", "to the first", "threads", "open files", "pictures kept", "their bytes")
    rows = []
    for one in readings:
        counts = map(str, (one.threads, one.open_files, one.uploads))
        growth = f"{one.resident_bytes / readings[0].resident_bytes:.3f}"
        held = (amount(one.resident_bytes, "B"), growth, *counts, amount(one.upload_bytes, "B"))
        rows.append((str(one.comparisons), *held))
    return markdown_table(heads, rows)


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


if __name__ == "__main__":
    sys.exit(main())
