"""Gradio's page, which answers what a program sends wrongly with a sentence, and takes files from its uploads only."""

from __future__ import annotations

import inspect
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi.exceptions import RequestValidationError
from gradio.blocks import BlockFunction
from gradio.route_utils import FnIndexInferError
from gradio.utils import get_upload_folder
from gradio_client import Client
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse

from vtw_demo.server.access import MAXIMUM_UPLOAD_BYTES, Access
from vtw_demo.server.caller import Caller, called_by
from vtw_demo.server.data_uris import DataUris
from vtw_demo.server.errors import REFUSED, Fault
from vtw_demo.server.monitoring import Monitoring, StatusRoutes
from vtw_demo.server.uploads import SWEEP_SECONDS, Uploads

NOT_UPLOADED = "The picture must be uploaded to this server first: other files and addresses are never read."
UNREADABLE = "What was sent can't be read: /gradio_api/info lists the functions and what each takes, as a JSON list."
# What Gradio's routes raise for bodies and names that mean nothing to them.
MISTAKES = (RequestValidationError, FnIndexInferError, KeyError, TypeError, ValueError)


class GuardedBlocks(gr.Blocks):
    """`uploads`: in the folder that Gradio has when the page is made. `/health` says whether the page `is_closing`."""

    def __init__(self, monitoring: Monitoring, is_closing: Callable[[], bool], **options: Any) -> None:
        super().__init__(**options)
        self._monitoring = monitoring
        self._is_closing = is_closing
        self.uploads = Uploads(Path(get_upload_folder()))
        self._closed = threading.Event()

    async def process_api(  # type: ignore[override]  # the rest is Gradio's own affair
        self, block_fn: BlockFunction | int, inputs: list[Any], **options: Any
    ) -> dict[str, Any]:
        """As Gradio does, with the session's files noted as its own."""
        files = list(_files(inputs))
        if not all(self.uploads.holds(file) for file in files):
            raise _problem(NOT_UPLOADED)
        for file in files:
            self.uploads.claim(options.get("session_hash") or "", file)
        with called_by(self._caller(options)):
            return await super().process_api(block_fn, inputs, **options)

    def _caller(self, options: dict[str, Any]) -> Caller:
        event_id = options.get("event_id")

        def is_lost() -> bool:
            # Gradio's queue forgets an event at its end, and marks one whose reader has gone.
            event = None if event_id is None else self._queue.event_ids_to_events.get(event_id)
            return event is not None and not event.alive

        return Caller(options.get("session_hash") or event_id or "", is_lost)

    async def preprocess_data(self, block_fn: BlockFunction, inputs: list[Any], *rest: Any, **options: Any) -> list:
        """As Gradio does; whatever goes wrong is said in a sentence."""
        try:
            return await super().preprocess_data(block_fn, inputs, *rest, **options)
        except gr.Error as error:
            raise _problem(error.message) from error
        except Exception as error:
            self._monitoring.refused(Fault(REFUSED, UNREADABLE), type(error).__name__)
            raise _problem(UNREADABLE) from error

    def validate_inputs(self, block_fn: BlockFunction, inputs: list[Any]) -> None:
        """Neither more nor fewer values than the function takes."""
        wanted = [block for block in block_fn.inputs if not getattr(block, "skip_api", False)]
        if len(inputs) != len(block_fn.inputs):
            names = ", ".join(_parameters(block_fn)) or "none"
            given = len(inputs) - (len(block_fn.inputs) - len(wanted))
            raise _problem(f"{block_fn.api_name} takes {len(wanted)} values ({names}); {max(given, 0)} came.")

    def launch(  # type: ignore[override]  # the rest is Gradio's own affair
        self, *, auth: list[tuple[str, str]] | None = None, **options: Any
    ) -> Any:
        """As Gradio does, without waiting for the end, and guarded: see `Access` and `DataUris`."""
        self.uploads.keep_present()
        launched = super().launch(
            **options,
            auth=auth,
            max_file_size=MAXIMUM_UPLOAD_BYTES,
            app_kwargs={
                "middleware": [
                    Middleware(Access, uploads=self.uploads),
                    Middleware(StatusRoutes, monitoring=self._monitoring, is_closing=self._is_closing),
                ],
                "exception_handlers": dict.fromkeys(MISTAKES, self._bad_request),
            },
            prevent_thread_lock=True,
        )
        if self.mcp_server_obj is not None:
            self.mcp_server_obj.convert_strings_to_filedata = DataUris(self.uploads.folder).replaced  # type: ignore
            if self.app.auth is not None:
                self.mcp_server_obj._client_instance = self._own_client()
        threading.Thread(target=self._sweep_uploads, name="uploads", daemon=True).start()
        return launched

    def close(self, verbose: bool = True) -> None:
        self._closed.set()
        super().close(verbose)

    async def _bad_request(self, request: Request, error: Exception) -> JSONResponse:
        """What comes before any function of the page: a body or an address that means nothing."""
        self._monitoring.refused(Fault(REFUSED, UNREADABLE), type(error).__name__)
        return JSONResponse({"detail": UNREADABLE}, status_code=400)

    def _own_client(self) -> Client:
        """With which Gradio's MCP server asks the page, for those who have logged in: Gradio's own has not."""
        token = secrets.token_urlsafe(32)
        self.app.tokens[token] = "mcp"
        return Client(
            self.local_url,
            download_files=False,
            verbose=False,
            analytics_enabled=False,
            ssl_verify=False,
            _skip_components=False,
            headers={"x-gradio-user": "mcp", "Cookie": f"access-token-unsecure-{self.app.cookie_id}={token}"},
        )

    def _sweep_uploads(self) -> None:
        while not self._closed.wait(SWEEP_SECONDS):
            self.uploads.sweep()


def _parameters(block_fn: BlockFunction) -> list[str]:
    if block_fn.fn is None:
        return []
    names = list(inspect.signature(block_fn.fn).parameters)
    return [name for name in names if name not in ("session", "request")]


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
