"""The page, started as a Space on free hardware starts it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from gradio_client import Client, handle_file
from playwright.sync_api import expect

from tests.serving import free_port

ROOT = Path(__file__).parents[2]
START_SECONDS = 120
# Notes every connection and every name that is looked up, in whatever library.
RECORDER = """
import os, sys

def note(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname", "webbrowser.open"):
        with open(os.environ["RECORD"], "a") as file:
            file.write(f"{event} {arguments[0] if 'get' in event else arguments[1:]!r}\\n")

sys.addaudithook(note)
"""


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """Its address and its record of connections; its cache folder is empty."""
    folder = tmp_path_factory.mktemp("space")
    (folder / "sitecustomize.py").write_text(RECORDER)
    (folder / "home").mkdir()
    record, log, port = folder / "record", folder / "log", free_port()
    record.touch()
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("VTW_", "HF_", "XDG_", "GRADIO_"))
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
            env=inherited | {
                # What the Spaces' own image sets, but for the port, which is theirs here as a variable.
                "SYSTEM": "spaces", "SPACE_ID": "me/vtw-demo", "SPACE_HOST": "me-vtw-demo.hf.space", "CPU_CORES": "2",
                "GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SERVER_PORT": str(port), "GRADIO_NUM_PORTS": "1",
                "GRADIO_ALLOW_FLAGGING": "never", "GRADIO_THEME": "huggingface", "PYTHONUNBUFFERED": "1",
                "HOME": str(folder / "home"), "PYTHONPATH": str(folder), "RECORD": str(record),
                "CUDA_VISIBLE_DEVICES": "",
            },
        )  # fmt: skip
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5).close()
                    break
                except OSError:
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < deadline, log.read_text()
                    time.sleep(0.2)
            yield port, record, log
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    assert code == 0, log.read_text()


def test_it_listens_where_a_space_is_looked_for_and_runs_the_embedded_model(space):
    port, _, log = space
    assert f"Running on local URL:  http://localhost:{port}" in log.read_text()
    with socket.create_connection((socket.gethostbyname(socket.gethostname()), port), timeout=5):
        pass
    assert "Running the embedded model, not llava-hf/llava-1.5-7b-hf: it is slow without a CUDA GPU" in log.read_text()


def test_the_page_and_a_comparison_need_nobody_else(space, browser):
    port, record, _ = space
    address = f"http://127.0.0.1:{port}"
    page = browser.new_page(viewport={"width": 1440, "height": 1000})
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    try:
        page.goto(address)
        page.locator("#examples button").first.click()
        expect(page.locator("#withdrawn")).to_contain_text("prefill", timeout=30_000, ignore_case=True)
        expect(page.locator("#verdict .problem")).to_have_count(0)
        content = page.content()
    finally:
        page.close()
    hosts = {urlsplit(url).netloc for url in asked if not url.startswith(("data:", "blob:"))}
    assert hosts == {f"127.0.0.1:{port}"}
    # Nor does anything that a browser might fetch later point elsewhere.
    served = urllib.request.urlopen(address, timeout=5).read().decode()
    for text in (served, content):
        fetched = re.findall(r"<(?:script|link|img|iframe|source|video)\b[^>]*?\b(?:src|href)=\"([^\"]+)\"", text)
        fetched += re.findall(r"(?:url\(|@import )[\"']?(https?:[^\"')]+)", text)
        assert fetched
        assert {urlsplit(url).netloc for url in fetched} <= {"", f"127.0.0.1:{port}"}
    # The server itself spoke to itself at most.
    lines = record.read_text().splitlines()
    assert [line for line in lines if not re.search(r"127\.0\.0\.1|localhost|'::1'|0\.0\.0\.0", line)] == []


def test_programs_are_answered(space):
    port, _, _ = space
    client = Client(f"http://127.0.0.1:{port}", verbose=False)
    picture = handle_file(str(ROOT / "assets/examples/two-shapes.png"))
    result = client.predict(picture, "What is the blue thing?", 9, 8, api_name="/compare")
    assert (result["layer"], result["layers"], result["device"]) == (9, 12, "cpu")
    assert result["full"]["answer"]
