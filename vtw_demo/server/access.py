"""What comes to the server first: who may come in, which of Gradio's routes are open, and how much may be sent."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import unquote

from gradio.route_utils import compare_passwords_securely
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vtw_demo.server.monitoring import HEALTH
from vtw_demo.server.uploads import Uploads

API = "/gradio_api/"
FILE = f"{API}file="
HEARTBEAT = f"{API}heartbeat/"
UPLOAD = f"{API}upload"
# The page uses none of these. They edit sources, read other servers, run ffmpeg, or hand out what others made.
UNUSED = (
    *(f"{API}{name}" for name in ("proxy=", "file/", "process_recording", "vibe-", "undo-vibe-", "component_server")),
    *(f"{API}{name}" for name in ("custom_component/", "stream/", "deep_link", "run-history", "runs", "dev/")),
    *(f"{API}profiling", "/monitoring"),
)
# What a browser needs to show the form in which one logs in; /config and the like ask Gradio itself.
OPEN = ("/static/", "/assets/", "/svelte/", "/login", "/logout", "/theme.css", "/favicon.ico", "/manifest.json")
OPEN_ALSO = ("/", "/robots.txt", HEALTH, f"{API}theme.css", f"{API}startup-events", f"{API}app_id", f"{API}login_check")
MAXIMUM_UPLOAD_BYTES = 20_000_000
# In base64 a picture is a third longer; beside it there are a question and the form's own words.
MAXIMUM_BODY_BYTES = MAXIMUM_UPLOAD_BYTES * 4 // 3 + 1_000_000
TOO_LARGE = f"This is too large: a picture's file may have up to {MAXIMUM_UPLOAD_BYTES // 1_000_000} MB."


class Access:
    """An ASGI middleware of the page's own app. `uploads` are told which sessions are open."""

    def __init__(self, app: ASGIApp, uploads: Uploads) -> None:
        self.app = app
        self.uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, headers = scope["path"].removeprefix(scope.get("root_path", "")), Headers(scope=scope)
        if path.startswith(UNUSED):
            await _answer("There is nothing here.", 404)(scope, receive, send)
        elif not _is_open(path) and not _may_enter(scope["app"], headers):
            # As Gradio says it: its clients look for this.
            await _answer({"error": "Not authenticated", "auth_message": None}, 401)(scope, receive, send)
        elif path.startswith(FILE) and not self.uploads.holds(unquote(path.removeprefix(FILE))):
            await _answer("This file is not one that the page shows.", 403)(scope, receive, send)
        elif path.startswith(HEARTBEAT) and headers.get("x-gradio-user") != "mcp":
            with self.uploads.opened(path.removeprefix(HEARTBEAT).strip("/")):
                await self.app(scope, receive, send)
        elif scope["method"] in ("POST", "PUT", "PATCH"):
            await self._limited(scope, receive, send, streams=path.startswith(UPLOAD))
        else:
            await self.app(scope, receive, send)

    async def _limited(self, scope: Scope, receive: Receive, send: Send, streams: bool) -> None:
        """No more than fits is read into memory or files; the rest is read and left, so that the sender hears why."""
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > MAXIMUM_BODY_BYTES:
            await _drain(receive)
            await _answer(TOO_LARGE, 413)(scope, receive, send)
        elif streams:
            await self.app(scope, _cut_off(receive), send)
        else:
            chunks, size = [], 0
            try:
                async for chunk in Request(scope, receive).stream():
                    size += len(chunk)
                    if size <= MAXIMUM_BODY_BYTES:
                        chunks.append(chunk)
            except ClientDisconnect:
                return
            if size > MAXIMUM_BODY_BYTES:
                await _answer(TOO_LARGE, 413)(scope, receive, send)
            else:
                await self.app(scope, _replayed(b"".join(chunks), receive), send)


def _answer(detail: Any, status: int) -> JSONResponse:
    return JSONResponse({"detail": detail}, status_code=status)


async def _drain(receive: Receive) -> None:
    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
        pass


def _cut_off(receive: Receive) -> Receive:
    """Gradio counts what comes file by file: all of them together may have no more than one."""
    size = 0

    async def next_message() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        return message if size <= MAXIMUM_BODY_BYTES else {"type": "http.disconnect"}

    return next_message


def _replayed(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message


def _is_open(path: str) -> bool:
    return path in OPEN_ALSO or path.startswith(OPEN)


def _may_enter(app: Any, headers: Headers) -> bool:
    """Whether there is nothing to log in to, the browser has logged in, or a program says who it is (HTTP Basic)."""
    if app.auth is None:
        return True
    cookies: SimpleCookie = SimpleCookie()
    try:
        cookies.load(headers.get("cookie", ""))
    except CookieError:
        return False
    for name in (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}"):
        if name in cookies and cookies[name].value in app.tokens:
            return True
    scheme, _, encoded = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return False
    try:
        user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return False
    return user in app.auth and compare_passwords_securely(password, app.auth[user])
