"""The page, started as a Space on free hardware starts it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from gradio_client import Client, handle_file
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from playwright.sync_api import expect

from tests import saved_models
from tests.hub_server import ask_hub, hub_server
from tests.serving import free_port
from vtw_demo.server.spacefile import read_spacefile

ROOT = Path(__file__).parents[2]
START_SECONDS = 120
SUITED = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
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
def hub(tmp_path_factory):
    """The address of a hub that has a small model by the name of the one that free hardware runs, and what is asked."""
    folder = tmp_path_factory.mktemp("smolvlm")
    saved_models.save("smolvlm", folder)
    with hub_server({SUITED: folder}) as served:
        yield served


@pytest.fixture(scope="module")
def space(tmp_path_factory, hub):
    """Its address, its record of connections and its log; in its cache is what the Spacefile preloads."""
    folder, (address, asked) = tmp_path_factory.mktemp("space"), hub
    (entry,) = read_spacefile(ROOT)["preload_from_hub"]
    name, files = entry.split()
    assert name == SUITED
    cache = folder / "home/.cache/huggingface/hub"
    with pytest.MonkeyPatch.context() as patch:
        ask_hub(patch, cache, address)
        for file in files.split(","):
            with suppress(EntryNotFoundError):
                hf_hub_download(name, file, cache_dir=cache)
    asked.clear()
    (folder / "sitecustomize.py").write_text(RECORDER)
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
                "CUDA_VISIBLE_DEVICES": "", "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1",
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
            # Until then the embedded model answers.
            while f"Now running {SUITED}: no GPU is used" not in log.read_text():
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


def test_it_listens_where_a_space_is_looked_for_and_the_preloaded_model_takes_over(space, hub):
    port, _, log = space
    assert f"Running on local URL:  http://localhost:{port}" in log.read_text()
    with socket.create_connection((socket.gethostbyname(socket.gethostname()), port), timeout=5):
        pass
    assert "Running embedded. " in log.read_text()
    assert f"Now running {SUITED}: no GPU is used" in log.read_text()
    assert f"Running {SUITED}: no GPU is used" in log.read_text()
    # Its weights were there.
    assert not [path for path in hub[1] if path.endswith(".safetensors")]


def test_the_page_and_a_comparison_need_nobody_else(space, browser):
    port, record, _ = space
    address = f"http://127.0.0.1:{port}"
    page = browser.new_page(viewport={"width": 1440, "height": 1000})
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    try:
        page.goto(address)
        expect(page.locator(".header")).to_contain_text(SUITED, timeout=30_000)
        expect(page.locator("#upgrade button:visible")).to_have_count(0)
        page.locator("#examples button").first.click()
        expect(page.locator("#withdrawn")).to_contain_text("prefill", timeout=120_000, ignore_case=True)
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
    result = client.predict(picture, "What is the blue thing?", 2, 8, api_name="/compare")
    assert (result["model"], result["layer"], result["device"]) == (SUITED, 2, "cpu")
    assert result["full"]["answer"]
