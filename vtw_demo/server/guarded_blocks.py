"""Gradio's page, which answers what a program sends wrongly with a sentence, and takes files from its uploads only.

Gradio reads addresses in place of uploads, says several lines or nothing where values are missing or too many, and its
MCP server can't ask a page that has accounts. In tests/server/test_security.py:
test_no_function_reads_a_file_that_was_not_uploaded, test_only_those_with_an_account_come_in; in
tests/page/test_bad_input.py: test_calls_with_missing_extra_and_mistyped_values, test_bodies_that_mean_nothing.
"""

import inspect
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi.exceptions import RequestValidationError
from gradio import http_server
from gradio.blocks import BlockFunction
from gradio.route_utils import FnIndexInferError
from gradio.utils import get_upload_folder
from gradio_client import Client
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse

from vtw_demo.server.access import Access
from vtw_demo.server.errors import REFUSED, Fault
from vtw_demo.server.listening import Place
from vtw_demo.server.monitoring import Monitoring, status_routes
from vtw_demo.server.uploads import MAXIMUM_UPLOAD_BYTES, SWEEP_SECONDS, WANTED, Uploads

UNREADABLE = "What was sent can't be read: /gradio_api/info lists the functions and what each takes, as a JSON list."
# What Gradio's routes raise for bodies and names that mean nothing to them.
MISTAKES = (RequestValidationError, FnIndexInferError, KeyError, TypeError, ValueError)


class GuardedBlocks(gr.Blocks):
    """`uploads`: in the folder that Gradio has when the page is made; `/health` says whether the page `is_closing`."""

    def __init__(self, monitoring: Monitoring, is_closing: Callable[[], bool], **options: Any) -> None:
        super().__init__(**options)
        self._monitoring = monitoring
        self._is_closing = is_closing
        self.uploads = Uploads(Path(get_upload_folder()))

    async def process_api(  # type: ignore[override]  # the rest is Gradio's own affair
        self, block_fn: BlockFunction | int, inputs: list[Any], **options: Any
    ) -> dict[str, Any]:
        """As Gradio does, with the session's files noted as its own when a call begins."""
        if options.get("iterator") is None:
            for file in _files(inputs):
                if not self.uploads.holds(file):
                    raise _problem(WANTED)
                self.uploads.claim(options.get("session_hash") or "", file)
        return await super().process_api(block_fn, inputs, **options)

    async def preprocess_data(self, block_fn: BlockFunction, inputs: list[Any], *rest: Any, **options: Any) -> list:
        """As Gradio does; whatever goes wrong is said in a sentence."""
        inputs = [*inputs, *_left_out(block_fn, len(inputs))]
        if len(inputs) != len(block_fn.inputs):
            raise _problem(_wrong_number(block_fn, len(inputs)))
        try:
            return await super().preprocess_data(block_fn, inputs, *rest, **options)
        except gr.Error as error:
            raise _problem(error.message) from error
        except Exception as error:
            self._monitoring.refused(Fault(REFUSED, UNREADABLE), type(error).__name__)
            raise _problem(UNREADABLE) from error

    def launch(  # type: ignore[override]  # the rest is Gradio's own affair
        self, place: Place, *, auth: list[tuple[str, str]] | None = None, **options: Any
    ) -> Any:
        """As Gradio does, without waiting for the end, and guarded; `place` is where it listens already."""
        self.uploads.keep_present()
        # What asks the page from here mustn't be sent to a proxy.
        known = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), place[1].strip("[]"))
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, known))
        http_server.start_server = partial(_start_server, place)  # type: ignore[assignment]
        launched = super().launch(
            **options,
            auth=auth,
            max_file_size=MAXIMUM_UPLOAD_BYTES,
            app_kwargs={
                "middleware": [Middleware(Access, uploads=self.uploads)],
                "routes": status_routes(self._monitoring, self._is_closing),
                "exception_handlers": dict.fromkeys(MISTAKES, self._bad_request),
            },
            prevent_thread_lock=True,
        )
        if self.mcp_server_obj is not None:
            self.mcp_server_obj.convert_strings_to_filedata = self.uploads.store_data_uris  # type: ignore
            if auth is not None:
                # Gradio's own asks the page without having logged in.
                self.mcp_server_obj._client_instance = Client(
                    self.local_url,
                    auth=auth[0],
                    headers={"x-gradio-user": "mcp"},
                    download_files=False,
                    verbose=False,
                    analytics_enabled=False,
                    ssl_verify=False,
                    _skip_components=False,
                )
        threading.Thread(target=self._sweep_uploads, name="uploads", daemon=True).start()
        return launched

    async def _bad_request(self, request: Request, error: Exception) -> JSONResponse:
        """What comes before any function of the page: a body or an address that means nothing."""
        self._monitoring.refused(Fault(REFUSED, UNREADABLE), type(error).__name__)
        return JSONResponse({"detail": UNREADABLE}, status_code=400)

    def _sweep_uploads(self) -> None:
        while self.is_running:
            self.uploads.sweep()
            time.sleep(SWEEP_SECONDS)


def _start_server(place: Place, app: Any, **_: Any) -> tuple[str, int, str, http_server.Server]:
    """In place of Gradio's own, which binds by IPv4, takes another port where one is taken, and gives up after 5 s."""
    (sockets, host), server = place, http_server.Server(uvicorn.Config(app, log_level="warning"))
    server.thread = threading.Thread(target=server.run, args=(sockets,), daemon=True)
    server.thread.start()
    while not server.started:
        if not server.thread.is_alive():
            raise OSError("its server ended at once, and said why")
        time.sleep(0.01)
    port = sockets[0].getsockname()[1]
    return host, port, f"http://{host}:{port}/", server


def _left_out(block_fn: BlockFunction, given: int) -> list[Any]:
    """The defaults of the inputs after those that were given, where all of them have one."""
    parameters = [] if block_fn.fn is None else list(inspect.signature(block_fn.fn).parameters.values())
    defaults = [parameter.default for parameter in parameters[given:]]
    has_all = len(parameters) == len(block_fn.inputs) and inspect.Parameter.empty not in defaults
    return defaults if has_all else []


def _wrong_number(block_fn: BlockFunction, given: int) -> str:
    # A session's state isn't sent.
    states = sum(bool(getattr(block, "skip_api", False)) for block in block_fn.inputs)
    parameters = [] if block_fn.fn is None else inspect.signature(block_fn.fn).parameters
    names = ", ".join(name for name in parameters if name not in ("session", "request")) or "none"
    wanted, came = len(block_fn.inputs) - states, max(given - states, 0)
    return f"{block_fn.api_name} takes {wanted} values ({names}); {came} came."


def _files(value: Any) -> Iterator[str]:
    """The paths of all files that `value` refers to, however deep."""
    waiting = [value]
    while waiting:
        here = waiting.pop()
        if isinstance(here, dict):
            if isinstance(here.get("path"), str):
                yield here["path"]
            waiting += here.values()
        elif isinstance(here, list | tuple):
            waiting += here


def _problem(sentence: str) -> gr.Error:
    return gr.Error(sentence, print_exception=False)
