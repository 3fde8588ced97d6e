"""The tour and the stage in a real browser: five steps, each with one plot and a sentence from its numbers."""

import re

import pytest
from playwright.sync_api import expect

from tests.grids import nightly_but
from tests.page.test_browser import WAIT, move_slider, wait_for_verdict
from vtw_demo.formats import percent

STEPS = ("attention", "where-it-looks", "migration", "choose-k", "staircase")
WIDTHS = (360, 720, 768, 1024, 1440, 1920)
PROJECTORS = ((1280, 720), (1920, 1080))
TRACES = """(name) => document.querySelector(`#${name} .js-plotly-plot`).data.map((trace) => ({
  name: trace.name, y: Array.from(trace.y), said: trace.customdata && Array.from(trace.customdata)}))"""


def wait_for_step(page, number):
    """Until its plot is drawn: its sentence."""
    name = STEPS[number - 1]
    expect(page.locator("#tour section:visible")).to_have_attribute("data-tab", name, timeout=WAIT)
    expect(page.locator(f"#{name} :is(.main-svg, .attention-map)").first).to_be_visible(timeout=WAIT)
    reading = page.locator(f"#{name}-reading .reading:not(.waiting)")
    expect(reading).to_contain_text(re.compile(r"\d"), timeout=WAIT)
    return reading.inner_text()


def mean(values):
    return sum(values) / len(values)


def numbers_of_the_plot(page, number, layer):
    """What a step's sentence should say, of what is drawn."""
    name = STEPS[number - 1]
    if name == "where-it-looks":
        captions = page.locator("#where-it-looks .map-side.full .map-caption p").all_text_contents()
        shares = [float(re.search(r": ([\d.]+) %", caption).group(1)) for caption in captions]
        return [f"Layer {shares.index(max(shares))} looks at the picture most"]
    traces = page.evaluate(TRACES, name)
    if name == "attention":
        picture, first = ([trace["y"] for trace in traces if trace["name"] == of] for of in ("image", "first token"))
        shares = picture[0][:layer], picture[0][layer:], first[1][layer:], first[0][layer:]
        return [percent(mean(share) / 100) for share in shares]
    if name == "migration":
        return [percent(trace["y"][-1] / 100) for trace in traces if (trace["name"] or "").startswith("“")]
    if name == "choose-k":
        kl = next(trace["said"] for trace in traces if trace["name"] == "this question")
        above = [k for k, value in enumerate(kl, start=1) if value > 0.003]
        return [f"from K = {max(above, default=0) + 1} on"]
    full, withdrawn = (trace["y"] for trace in traces if "in all" in trace["name"])
    return [f"{withdrawn[-1]} of the prompt's {full[0]} tokens"]


def is_no_wider_than_the_window(page):
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_tour_leads_through_five_steps_each_with_the_numbers_of_its_plot(open_page, embedded_server):
    page = open_page(embedded_server)
    wait_for_verdict(page)
    page.get_by_role("button", name="Take the tour").click()
    headings, tries = [], []
    for number in range(1, len(STEPS) + 1):
        sentence = wait_for_step(page, number)
        for said in numbers_of_the_plot(page, number, 8):
            assert said in sentence
        step = page.locator("#tour section:visible")
        headings.append(step.locator("h2").inner_text())
        tries.append(step.locator(".tour-try").inner_text())
        assert f"tour={number}" in page.url
        assert page.locator("#tabs [role=tabpanel]:visible").count() == 1
        page.locator(".tour-next").click()
    assert len(set(headings)) == len(set(tries)) == len(STEPS)
    expect(page.locator("#tour")).to_be_hidden()
    assert "tour" not in page.url


def test_in_the_tour_the_slider_is_moved_until_the_answer_breaks(open_page, embedded_server):
    page = open_page(f"{embedded_server}/?tour=4")
    wait_for_step(page, 4)
    wait_for_verdict(page)
    assert page.locator("#full .answer").inner_text() == page.locator("#withdrawn .answer").inner_text()
    move_slider(page, 1)
    expect(page.locator("#verdict")).to_contain_text("Different answers", timeout=WAIT)
    assert page.locator("#full .answer").inner_text() != page.locator("#withdrawn .answer").inner_text()
    assert re.search(r"\btour=4\b.*layer=1\b|layer=1\b.*\btour=4\b", page.url)


@pytest.mark.parametrize("number", nightly_but((1, 2), range(1, len(STEPS) + 1)))
def test_a_link_opens_any_step_and_it_is_left_there(open_page, server, number):
    for leave in (lambda page: page.keyboard.press("Escape"), lambda page: page.locator(".tour-leave").click()):
        page = open_page(f"{server}/?tour={number}")
        wait_for_step(page, number)
        expect(page.locator(".header")).to_be_hidden()
        height = page.locator(f"#{STEPS[number - 1]}").bounding_box()["height"]
        leave(page)
        expect(page.locator("#tour")).to_be_hidden()
        expect(page.locator(".header")).to_be_visible()
        expect(page.get_by_role("tab", selected=True)).to_have_attribute("data-tab-id", STEPS[number - 1])
        expect(page.locator("#groups button[aria-current=true]")).to_be_visible()
        assert "tour" not in page.url
        if STEPS[number - 1] == "attention":  # it filled the window
            page.wait_for_function(
                "(height) => document.querySelector('#attention').getBoundingClientRect().height < height", arg=height
            )


@pytest.mark.parametrize("width", nightly_but((360, 1440), WIDTHS))
def test_no_step_scrolls_sideways(open_page, server, width):
    page = open_page(f"{server}/?tour=1", width, 900)
    for number in range(1, len(STEPS) + 1):
        wait_for_step(page, number)
        assert is_no_wider_than_the_window(page), number
        page.get_by_role("button", name="Next").or_(page.get_by_role("button", name="Finish")).click()


@pytest.mark.parametrize(("width", "height"), PROJECTORS)
def test_the_stage_fills_the_window_and_does_not_scroll(open_page, server, width, height):
    page = open_page(f"{server}/?stage", width, height)
    for number in range(1, len(STEPS) + 1):
        wait_for_step(page, number)
        wait_for_verdict(page)
        assert is_no_wider_than_the_window(page)
        assert page.evaluate("document.documentElement.scrollHeight <= window.innerHeight")
        plot = f"#{STEPS[number - 1]}"
        for part in ("#picture", "#question", "#layer", "#full", "#withdrawn", "#verdict", f"{plot}-reading", plot):
            box = page.locator(part).bounding_box()
            assert box["x"] >= 0
            assert box["y"] >= 0
            assert box["x"] + box["width"] <= width, part
            assert box["y"] + box["height"] <= height, part
        # The last of them is the plot.
        assert box["width"] > 0.7 * width
        assert box["y"] + box["height"] > 0.95 * height
        if number < len(STEPS):
            page.keyboard.press("PageDown")


@pytest.mark.parametrize(("width", "height"), PROJECTORS)
def test_type_on_stage_can_be_read_from_afar(open_page, server, width, height):
    page = open_page(f"{server}/?stage", width, height)
    wait_for_step(page, 1)
    wait_for_verdict(page)

    def size(part):
        return page.locator(part).first.evaluate("part => parseFloat(getComputedStyle(part).fontSize)")

    for answer in ("#full .answer", "#withdrawn .answer"):
        assert size(answer) >= 40 * width / 1920
    for text in ("#attention-reading .reading", "#verdict .verdict", "#question textarea", "#tour section:visible h2"):
        assert size(text) >= 24 * width / 1920, text
    # Of what is drawn, as it is magnified.
    tick = page.locator("#attention .xtick text").first
    assert tick.bounding_box()["height"] >= 20 * width / 1920


def test_keys_lead_through_the_stage_and_arrows_move_a_slider_that_has_the_focus(open_page, server):
    page = open_page(f"{server}/?stage&tour=2", 1280, 720)
    wait_for_step(page, 2)
    wait_for_verdict(page)
    for key, number in (("PageDown", 3), ("ArrowRight", 4), ("PageUp", 3), ("ArrowLeft", 2), ("ArrowLeft", 1)):
        page.keyboard.press(key)
        wait_for_step(page, number)
    page.keyboard.press("PageUp")
    wait_for_step(page, 1)
    slider = page.locator("#layer input[type=range]")
    slider.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#withdrawn h3")).to_contain_text("layer 9", timeout=WAIT)
    wait_for_step(page, 1)
    page.keyboard.press("PageDown")
    wait_for_step(page, 2)
    assert slider.input_value() == "9"
    page.keyboard.press("Escape")
    expect(page.locator(".header")).to_be_visible()
    assert "stage" not in page.url
