"""SmolVLM2 in its full size with random weights: from the start of the page to its first comparison.

It prints what it measures: `python -m pytest -m nightly -n 0 -s tests/page/test_full_size.py`.
"""

import re
import time

import pytest
from playwright.sync_api import expect

from tests import full_size
from tests.hub_server import hub_server
from tests.serving import started
from vtw_demo.comparison.machine import this_machine
from vtw_demo.formats import amount

SECONDS = 600
MOST_MEMORY = {"256M": 3e9}
"""Bytes of the whole process, at most."""

pytestmark = pytest.mark.nightly


def peak_memory(process):
    """The most bytes that were resident at once."""
    with open(f"/proc/{process.pid}/status", encoding="utf-8") as status:
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read())[1]) * 1024


@pytest.mark.parametrize("name", full_size.NAMES)
def test_it_is_fetched_takes_over_and_answers(name, browser, tmp_path):
    folder = tmp_path / "model"
    full_size.save(name, folder)
    variables = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "", "OMP_NUM_THREADS": "2"}
    times, since = {}, time.perf_counter()

    def reached(what):
        times[what] = time.perf_counter() - since

    with (
        hub_server({name: folder}) as (address, _),
        started(tmp_path, HF_ENDPOINT=address, **variables) as (url, process, _),
    ):
        reached("the page is up")
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        try:
            page.goto(f"{url}/?model={name}")
            compared = page.locator("#verdict .verdict[data-of]")
            expect(compared).to_be_visible(timeout=SECONDS * 1000)
            reached("the embedded model has answered")
            expect(page.locator("#upgrade-line")).to_contain_text("Now running", timeout=SECONDS * 1000)
            reached("the larger model is here")
            expect(page.locator("#verdict .progress")).to_be_visible(timeout=SECONDS * 1000)
            expect(compared).to_be_visible(timeout=SECONDS * 1000)
            reached("it has answered")
            answer = re.search(r"\d+ tokens", page.locator("#full").inner_text())[0]
            expect(page.locator(".header")).to_contain_text(name)
            expect(page.locator(".header")).to_contain_text("visual tokens", timeout=SECONDS * 1000)
        finally:
            page.close()
        memory = peak_memory(process)
    print(f"\n{name}, {this_machine()}")
    print(*(f"- after {seconds:.1f} s {what}" for what, seconds in times.items()), sep="\n")
    print(f"- the full run's answer has {answer}")
    print(f"- memory at most {amount(memory, 'B')}")
    size = re.search(r"\d+M", name)[0]
    assert memory < MOST_MEMORY.get(size, float("inf"))
