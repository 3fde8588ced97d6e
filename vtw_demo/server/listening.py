"""Where the page listens. Gradio itself knows IPv4 alone, and takes another port where the one asked for is taken."""

import errno
import logging
import os
import re
import reprlib
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from vtw_demo.errors import UserError

logger = logging.getLogger(__name__)

FIRST_PORT, PORTS = 7860, 100
HERE, EVERYWHERE, EVERYWHERE_IPV6 = "127.0.0.1", "0.0.0.0", "::"
Place = tuple[list[socket.socket], str]
"""Sockets that listen, at one port, and the host by which a browser finds it."""
# Others of Gradio's variables let files out, start more servers, or hold up the end.
_OBEYED = "SERVER_NAME|SERVER_PORT|NUM_PORTS|TEMP_DIR|ROOT_PATH|HEARTBEAT_INTERVAL|ANALYTICS_ENABLED|SHARE.*|API_SERVER"


def check_variables() -> None:
    """Take Gradio's variables that the page doesn't obey out of the environment; UserError for a bad root path."""
    dropped = [name for name in os.environ if re.match(f"GRADIO_(?!({_OBEYED})$)", name)]
    for name in dropped:
        del os.environ[name]
    if dropped:
        logger.info("Not used by this page: %s.", ", ".join(sorted(dropped)))
    root = os.environ.get("GRADIO_ROOT_PATH", "")
    if root and not re.fullmatch(r"(https?://|/)[^/\s]\S*", root):
        raise UserError(f"GRADIO_ROOT_PATH must be a path such as /demo or a whole address; this is {root!r}.")


@contextmanager
def listening(host: str, port: str | None) -> Iterator[Place]:
    """Listen at an address or name of this machine; at the first free port from 7860 where no `port` is asked for.

    Port 0 is any free one. Raises UserError.
    """
    host = host.strip().removeprefix("[").removesuffix("]")
    if port:
        first, last = 2 * [_number("The port (--port or GRADIO_SERVER_PORT)", port, 0, 65535)]
    else:
        count = _number("GRADIO_NUM_PORTS", os.environ.get("GRADIO_NUM_PORTS") or str(PORTS), 1, 65536 - FIRST_PORT)
        first, last = FIRST_PORT, FIRST_PORT + count - 1
    try:
        found = dict.fromkeys(entry[::4] for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"The host {reprlib.repr(host)} (--host or GRADIO_SERVER_NAME) isn't known: use an address or name of this "
            f"machine, such as {HERE}, or {EVERYWHERE} to let others in."
        ) from error
    for number in range(first, last + 1):
        with ExitStack() as opened:
            try:
                sockets = _listen(opened, list(found), number)
            except OSError as error:
                if error.errno == errno.EADDRINUSE and number < last:
                    continue
                tried = number if first == last else f"{first} to {last}"
                raise UserError(
                    f"The page can't listen at {host}, port {tried}: {os.strerror(error.errno or 0)}. Choose another "
                    f"--port, or a --host that is this machine's: {HERE}, or {EVERYWHERE} to let others in."
                ) from error
            shown = "localhost" if host in (EVERYWHERE, EVERYWHERE_IPV6) else f"[{host}]" if ":" in host else host
            yield sockets, shown
            return


def _number(name: str, text: str, lowest: int, highest: int) -> int:
    if not re.fullmatch(r"\s*[0-9]{1,9}\s*", text) or not lowest <= int(text) <= highest:
        raise UserError(f"{name} must be a whole number from {lowest} to {highest}; this is {reprlib.repr(text)}.")
    return int(text)


def _listen(opened: ExitStack, found: list[tuple], port: int) -> list[socket.socket]:
    """At those of the addresses that this machine has: names often have one of IPv6 where it has none. OSError."""
    sockets: list[socket.socket] = []
    for family, address in found:
        both = address[0] == EVERYWHERE_IPV6 and socket.has_dualstack_ipv6()
        at = (address[0], port, *address[2:])
        try:
            sockets.append(opened.enter_context(socket.create_server(at, family=family, dualstack_ipv6=both)))
            # asyncio sets it for sockets of its own only; without, each small message of a stream waits for the last.
            sockets[-1].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            port = sockets[0].getsockname()[1]
        except OSError as error:
            missing = error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
            if not missing or (not sockets and (family, address) == found[-1]):
                raise
    return sockets
