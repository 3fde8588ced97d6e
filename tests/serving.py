"""Real servers, and those who ask them. What these need is imported where it is used: see conftest.py."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
START_SECONDS = 180


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory):
    """The folder of `saved_models.save_small`."""
    from tests import saved_models

    folder = tmp_path_factory.mktemp("small")
    saved_models.save_small(folder)
    return folder


@pytest.fixture(scope="session")
def small(small_folder):
    """The model in it. It is shared: a test leaves it as it was."""
    from vtw_demo.models.loading import load

    return load(str(small_folder), device="cpu")


@contextmanager
def started(folder, *arguments, **environment):
    """`python app.py` in a process of its own: the address of its page, the process and the file of its log.

    It is told to end at the end. `folder` is for what it writes.
    """
    port, log = free_port(), folder / "log"
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py", "--device", "cpu", "--port", str(port), *map(str, arguments)],
            cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
            env=os.environ | {"NO_PROXY": "127.0.0.1", "XDG_CACHE_HOME": str(folder)} | environment,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                try:
                    urllib.request.urlopen(f"{url}/gradio_api/app_id", timeout=5).close()
                    break
                except urllib.error.HTTPError:
                    break  # it lets only some in
                except OSError:
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < deadline, log.read_text()
                    time.sleep(0.1)
            yield url, process, log
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise


@contextmanager
def ends_well(folder, *arguments):
    """The address of a page whose server must end well on SIGTERM, whatever was asked of it."""
    with started(folder, *arguments) as (url, process, log):
        yield url
    assert process.returncode == 0, log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="session")
def server(tmp_path_factory, small_folder):
    """The address of a page with the small model, served by `python app.py` itself."""
    with ends_well(tmp_path_factory.mktemp("server"), "--model", small_folder, "--layer", 8) as url:
        yield url


@pytest.fixture(scope="session")
def embedded_server(tmp_path_factory):
    """The same with the embedded model."""
    with ends_well(tmp_path_factory.mktemp("server"), "--model", "embedded", "--layer", 8) as url:
        yield url


@contextmanager
def served(engine, first_layer=None):
    """The address of a page in this process, whose `engine` a test can get at."""
    from vtw_demo.page.build import build_page
    from vtw_demo.page.command_line import THREADS
    from vtw_demo.page.layout import CSS, HEAD, THEME
    from vtw_demo.server.listening import listening

    page = build_page(engine, first_layer)
    with listening("127.0.0.1", "0") as place:
        page.launch(place, quiet=True, theme=THEME, css=CSS, head=HEAD, ssr_mode=False, max_threads=THREADS)
        try:
            yield page.local_url.rstrip("/")
        finally:
            engine.close()
            page.close()


@pytest.fixture(scope="session")
def tab(browser):
    """It is used again and again: a page that is loaded again takes a third of the time of a new one."""
    tab = browser.new_page()
    yield tab
    tab.close()


@pytest.fixture
def open_page(tab):
    """Opens an address as a new visitor, in the window of that size. No script on it may fail."""
    problems = []

    def note(error):
        problems.append(str(error))

    def go(address, width=1440, height=1000):
        if tab.url.startswith("http"):
            tab.evaluate("() => sessionStorage.clear()")
        tab.goto("about:blank")  # the page before might still write
        where = {"origin": "/".join(address.split("/")[:3]), "storageTypes": "local_storage"}
        tab.context.new_cdp_session(tab).send("Storage.clearDataForOrigin", where)
        tab.context.clear_cookies()
        tab.set_viewport_size({"width": width, "height": height})
        tab.on("pageerror", note)
        tab.goto(address)
        return tab

    yield go
    tab.remove_listener("pageerror", note)
    assert not problems


@pytest.fixture
def page(open_page, server):
    return open_page(server)


@pytest.fixture(scope="session")
def http(server):
    import httpx

    with httpx.Client(base_url=server, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture(scope="session")
def upload(http):
    def send(content, name="picture.png"):
        sent = http.post("/gradio_api/upload", files={"files": (name, content)})
        assert sent.status_code == 200, sent.text
        return {"path": sent.json()[0], "meta": {"_type": "gradio.FileData"}}

    return send


@pytest.fixture(scope="session")
def good(upload):
    from tests.bad_input import encoded, scene

    return upload(encoded(scene()))


@pytest.fixture(scope="session")
def call(http):
    """What a function of the API gives: its result and None, or None and the sentence."""

    def send(*data, name="compare"):
        body = json.dumps({"data": data})
        joined = http.post(f"/gradio_api/call/{name}", content=body, headers={"Content-Type": "application/json"})
        if joined.status_code != 200:
            return None, joined.json()["detail"]
        stream = http.get(f"/gradio_api/call/{name}/{joined.json()['event_id']}").text
        event, data = re.findall(r"^event: (complete|error)\ndata: (.*)$", stream, re.MULTILINE)[-1]
        return (json.loads(data)[0], None) if event == "complete" else (None, json.loads(data)["error"])

    return send


@pytest.fixture(scope="session")
def ask(server):
    """Calls a tool of the page's MCP server; without a name, lists the tools."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    def call(tool=None, **arguments):
        async def talk():
            async with (
                streamablehttp_client(f"{server}/gradio_api/mcp/") as (read, write, _),
                ClientSession(read, write) as session,
            ):
                await session.initialize()
                return await (session.call_tool(tool, arguments) if tool else session.list_tools())

        # A thread of its own: Playwright has an event loop in this one.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, talk()).result()

    return call
