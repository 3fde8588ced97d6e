"""The page in windows of each width, a phone's to a large screen's, in a real browser. At 200 % a window of 1,440
pixels is as wide as one of 720, at 400 % one of 1,280 as wide as one of 320."""

import time
from itertools import pairwise
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.grids import nightly_but
from tests.page.test_browser import WAIT, wait_for_attention, wait_for_sweep
from tests.page.test_sections import GROUPS, SECTIONS, open_tab, wait_until_drawn

WIDTHS = [320, 360, 680, 720, 768, 820, 1024, 1440, 1920, 2560]
# One or two for each of the layouts of sizes.css.
DAILY = [320, 680, 720, 1440, 1920]
PHONES = {320: 568, 360: 740, 390: 844}
LAYOUT_FAULTS = (Path(__file__).parent / "layout_faults.js").read_text()
FONT_SIZE = "element => parseFloat(getComputedStyle(element).fontSize)"


@pytest.fixture
def never_run(tab):
    """A page opened now asks for its first run, and hears nothing."""
    tab.route("**/queue/join*", lambda route: None)
    yield
    tab.unroute("**/queue/join*")


def expect_no_faults(page, width):
    """Once what a window's new size changes has been drawn."""
    deadline = time.monotonic() + WAIT / 1000
    while True:
        found = page.evaluate(LAYOUT_FAULTS)
        faults = found["covered"] + found["outside"] + (found["small"] if width < 700 else [])
        if not faults and found["width"] <= width:
            return
        assert time.monotonic() < deadline, f"{width}: {found}"
        time.sleep(0.05)


@pytest.mark.parametrize("widths", nightly_but([DAILY], [DAILY, WIDTHS]), ids=len)
def test_nothing_covers_anything_in_any_tab_at_any_width(open_page, server, widths):
    page = open_page(server, 1440, 900)
    wait_for_attention(page, 8)
    wait_for_sweep(page)
    for title in (title for titles in GROUPS.values() for title in titles):
        page.set_viewport_size({"width": 1440, "height": 900})
        open_tab(page, title)
        if title in SECTIONS:
            wait_until_drawn(page, title)
        for width in widths:
            page.set_viewport_size({"width": width, "height": 900})
            expect_no_faults(page, width)


def test_nothing_covers_anything_before_a_run(never_run, open_page, server):
    page = open_page(server)
    expect(page.locator("#groups")).to_be_visible(timeout=WAIT)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        expect_no_faults(page, width)


@pytest.mark.parametrize("width", PHONES)
def test_a_phone_shows_question_run_answers_slider_and_live_line_in_this_order(open_page, server, width):
    page = open_page(server, width, PHONES[width])
    wait_for_sweep(page)
    order = [
        page.locator(part).bounding_box() for part in ("#question", "#run", "#full", "#withdrawn", "#layer", "#live")
    ]
    for above, below in pairwise(order):
        assert above["y"] + above["height"] <= below["y"] + 1
    # All of what the slider changes is seen with it.
    slider, live = page.locator("#layer input[type=range]"), page.locator("#live .live")
    slider.evaluate("element => element.scrollIntoView({block: 'start'})")
    slider.press("ArrowLeft")
    expect(page.locator("#live .live[data-layer='7']")).to_be_in_viewport(ratio=0.99, timeout=WAIT)
    expect(slider).to_be_in_viewport(ratio=0.9)
    expect(live.locator("li").first).to_be_visible()


def test_a_phone_folds_controls_away_until_they_are_asked_for(open_page, server):
    page = open_page(server, 360, 740)
    wait_for_sweep(page)
    folded = [page.locator(part) for part in ("#examples", "#random-scene", "#calibrate", "#max-new-tokens")]
    for control in folded:
        expect(control).to_be_hidden()
    page.get_by_text("Examples and settings").click()
    for control in folded:
        expect(control).to_be_visible()
    expect_no_faults(page, 360)
    page.keyboard.press("Escape")
    for control in folded:
        expect(control).to_be_hidden()
    page.set_viewport_size({"width": 768, "height": 900})
    for control in folded:
        expect(control).to_be_visible()


def test_wide_windows_are_used_and_type_grows_with_them(open_page, server):
    page = open_page(server, 1440, 900)
    wait_for_attention(page, 8)
    texts = [
        page.locator(part).first
        for part in ("#full .answer", "#verdict .verdict", "#live p", "#question textarea", "#attention-reading p",
                     "#run", "#groups button", "#tabs [role=tab]", "#attention .legendtext")
    ]  # fmt: skip
    sizes = [[text.evaluate(FONT_SIZE) for text in texts]]
    for width in (1920, 2560):
        page.set_viewport_size({"width": width, "height": 1080})
        assert page.locator("#query").bounding_box()["x"] <= 24
        plots = page.locator("#tabs").bounding_box()
        assert plots["x"] + plots["width"] >= width - 24
        # The plots stand beside what is asked, not below it.
        assert plots["y"] < page.locator("#answers").bounding_box()["y"]
        expect(page.locator("#attention .legendtext").first).not_to_have_css(
            "font-size", f"{sizes[-1][-1]:g}px", timeout=WAIT
        )
        sizes.append([text.evaluate(FONT_SIZE) for text in texts])
    for at_1440, at_1920, at_2560 in zip(*sizes, strict=True):
        assert at_1440 < at_1920 < at_2560
