"""`python -m vtw_demo loadtest`: the real server under many visitors at once, and its memory over many comparisons."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import httpx

from vtw_demo.benchmark.load_test.crowd import Load, compare, measure_load
from vtw_demo.benchmark.load_test.memory import Memory, check_comparisons, measure_memory
from vtw_demo.benchmark.load_test.protocol import FailedError, Page, Visitor
from vtw_demo.benchmark.load_test.requests import random_request
from vtw_demo.benchmark.load_test.results import load_misses, load_table, memory_misses, memory_table
from vtw_demo.benchmark.load_test.server import Server, serve
from vtw_demo.comparison.machine import this_machine
from vtw_demo.errors import UserError
from vtw_demo.files import write_whole

DESCRIPTION = (
    "Start the page with the embedded model as a process of its own, on an address that only this machine reaches. "
    "Many visitors ask it at once, each with pictures, questions and withdrawal layers of their own, and every answer "
    "is held against what the same request got alone. Then another server makes many comparisons while its memory is "
    "read. The exit code is 1 where an answer differs, a request is lost, memory grows by more than 5 %, or the server "
    "doesn't end within 10 s of SIGTERM."
)
REQUESTS_EACH = 2
MOST_CLIENTS = 1000

Measured = TypeVar("Measured")
Measure = Callable[[httpx.AsyncClient, Page, Server, int], Awaitable[Measured]]


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
    if not 1 <= options.clients <= MOST_CLIENTS:
        raise UserError(f"There must be from 1 to {MOST_CLIENTS} clients; this is {options.clients}.")
    if not 0 <= options.seconds <= 3600:
        raise UserError(f"The seconds must be from 0 to 3600; this is {options.seconds:g}.")
    if options.comparisons != 0:
        check_comparisons(options.comparisons)

    async def load(http: httpx.AsyncClient, page: Page, server: Server, layers: int) -> Load:
        requests = [random_request(seed, layers) for seed in range(REQUESTS_EACH * options.clients)]
        return await measure_load(http, page, options.clients, options.seconds, requests)

    async def memory(http: httpx.AsyncClient, page: Page, server: Server, layers: int) -> Memory:
        return await measure_memory(http, page, server, options.clients, options.comparisons, layers)

    machine, today = this_machine(), date.today().isoformat()
    print(f"{today}; {machine}", end="\n\n")
    result: dict[str, Any] = {"date": today, "machine": machine.to_json()}
    misses: list[str] = []
    if options.seconds:
        found, endings = _with_server(load, options)
        print(load_table(found), end="\n\n")
        result["load"] = asdict(found)
        misses += load_misses(found) + endings
    if options.comparisons:
        grown, endings = _with_server(memory, options)
        print(memory_table(grown), end="\n\n")
        result["memory"] = asdict(grown)
        misses += memory_misses(grown) + endings
    result["missed"] = misses
    print("\n".join(misses) or "Every bar is met.")
    if options.json:
        write_whole(options.json, json.dumps(result, indent=1).encode())
        print(options.json)
    return 1 if misses else 0


def _with_server(measure: Measure[Measured], options: argparse.Namespace) -> tuple[Measured, list[str]]:
    """What `measure` finds on a server of its own, and a sentence if that doesn't end well."""

    async def measured(server: Server) -> Measured:
        # Proxies of the environment are for other machines.
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(trust_env=False, timeout=None, limits=limits) as http:
            try:
                page = await Page.read(http, server.url)
                first = await compare(Visitor(http, page), random_request(0, 1))
                return await measure(http, page, server, first["layers"])
            except httpx.HTTPError as error:
                raise FailedError(f"The server gave no answer: {error!r}.") from error

    with serve(options.host, options.port) as server:
        found = asyncio.run(measured(server))
        ending = server.end()
    return found, [ending] if ending else []
