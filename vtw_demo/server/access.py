"""Who asks, and what for: accounts, which of Gradio's routes are open, how much may be sent, who still listens.

Gradio asks for no account where something is cancelled or an MCP tool called, and knows no HTTP Basic; it fetches
addresses behind `file=` and follows links; it limits an upload's files, and no other body. In
tests/server/test_security.py: test_only_those_with_an_account_come_in, test_no_address_is_ever_fetched,
test_links_out_of_the_upload_folder_lead_nowhere, test_what_the_page_does_not_use_is_closed; in
tests/page/test_bad_input.py: test_200_mb_are_refused_however_they_come.
"""

import base64
import binascii
import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from gradio.context import LocalContext
from gradio.route_utils import compare_passwords_securely
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vtw_demo.errors import UserError
from vtw_demo.files import data_beside
from vtw_demo.server.uploads import MAXIMUM_UPLOAD_BYTES, TOO_LARGE, Uploads

HOW = "Give --auth a file, or VTW_AUTH a text, that has user:password on each line."
API = "/gradio_api/"
FILE = f"{API}file="
HEARTBEAT = f"{API}heartbeat/"
_ROUTES = data_beside(__file__, "routes.toml")
UNUSED, OPEN, OPEN_ALSO = (tuple(_ROUTES[name]) for name in ("unused", "open", "open_also"))
# In base64 a picture is a third longer; beside it there are a question and the form's own words.
MAXIMUM_BODY_BYTES = MAXIMUM_UPLOAD_BYTES * 4 // 3 + 1_000_000


def read_accounts(file: str | None, text: str | None) -> list[tuple[str, str]] | None:
    """Users with their passwords: of `file` where there is one, else of `text`; None where there is neither.

    Blank lines and those that begin with # say nothing. No sentence of an error holds what was given: it may be a
    password.
    """
    if file is not None:
        try:
            content = Path(file).read_bytes()
        except (OSError, ValueError) as error:
            raise UserError(
                "--auth takes a file, and what was given is none that can be read; a password itself would be seen in "
                f"the list of processes. {HOW}"
            ) from error
        try:
            text = content.decode(json.detect_encoding(content))  # Windows saves UTF-16, too
        except ValueError as error:
            raise UserError("The file of --auth is not in UTF-8 or UTF-16: save it so.") from error
    if text is None:
        return None
    accounts: dict[str, str] = {}
    for number, line in enumerate(io.StringIO(text.removeprefix("\ufeff"), newline=None), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        user, _, password = line.strip().partition(":")
        user = user.strip()
        if not user or not password:
            raise UserError(f"Line {number} of the accounts is not user:password. {HOW}")
        if user in accounts:
            raise UserError(f"Line {number} of the accounts names a user again. {HOW}")
        accounts[user] = password
    if not accounts:
        raise UserError(f"There is no account: nobody could log in. {HOW}")
    return list(accounts.items())


class Access:
    """An ASGI middleware, before all routes of the page. `uploads` are told which sessions are open."""

    def __init__(self, app: ASGIApp, uploads: Uploads) -> None:
        self.app = app
        self.uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request, path = Request(scope), scope["path"].removeprefix(scope.get("root_path", ""))
        length = request.headers.get("content-length", "")
        if path.startswith(UNUSED):
            await _answer("There is nothing here.", 404)(scope, receive, send)
        elif path not in OPEN_ALSO and not path.startswith(OPEN) and not _may_enter(request):
            # As Gradio says it: its clients look for this.
            await _answer({"error": "Not authenticated", "auth_message": None}, 401)(scope, receive, send)
        elif path.startswith(FILE) and not self.uploads.holds(unquote(path.removeprefix(FILE))):
            await _answer("This file is not one that the page shows.", 403)(scope, receive, send)
        elif length.isdecimal() and int(length) > MAXIMUM_BODY_BYTES:
            await _answer(TOO_LARGE, 413)(scope, receive, send)
        elif path.startswith(HEARTBEAT) and request.headers.get("x-gradio-user") != "mcp":
            with self.uploads.opened(path.removeprefix(HEARTBEAT).strip("/")):
                await self.app(scope, receive, send)
        else:
            await self.app(scope, _limited(receive), send)


def _answer(detail: Any, status: int) -> JSONResponse:
    return JSONResponse({"detail": detail}, status_code=status)


def _limited(receive: Receive) -> Receive:
    size = 0

    async def next_message() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > MAXIMUM_BODY_BYTES:
            raise HTTPException(413, TOO_LARGE)
        return message

    return next_message


def _may_enter(request: Request) -> bool:
    """Whether there is nothing to log in to, the browser has logged in, or a program says who it is (HTTP Basic)."""
    app = request.app
    if app.auth is None:
        return True
    names = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
    if any(request.cookies.get(name) in app.tokens for name in names):
        return True
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return False
    try:
        user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return False
    return user in app.auth and compare_passwords_securely(password, app.auth[user])


class LostConnection(threading.Event):
    """A stop that is set as soon as the caller's connection is lost: nobody would read what is run on."""

    def __init__(self, is_lost: Callable[[], bool]) -> None:
        super().__init__()
        self._is_lost = is_lost

    def is_set(self) -> bool:
        return super().is_set() or self._is_lost()


def caller() -> tuple[str, LostConnection]:
    """Who calls the page's function that runs in this thread: their session, as Gradio names it, and their stop."""
    blocks, event_id, request = LocalContext.blocks.get(), LocalContext.event_id.get(), LocalContext.request.get()

    def is_lost() -> bool:
        # Gradio's queue forgets an event at its end, and marks one whose reader has gone.
        event = blocks._queue.event_ids_to_events.get(event_id) if blocks and event_id else None
        return event is not None and not event.alive

    return getattr(request, "session_hash", None) or event_id or "", LostConnection(is_lost)
