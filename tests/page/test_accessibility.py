"""What axe finds on the page, and how it is used without a mouse, in a real browser."""

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import expect

from tests.page.test_browser import WAIT, wait_for_attention, wait_for_sweep, wait_for_verdict
from tests.page.test_sections import GROUPS, SECTIONS, open_tab, wait_until_drawn
from tests.page.test_sizes import never_run  # noqa: F401
from vtw_demo.page.tabs.model import LOOK_SECONDS


def findings(page):
    """The critical and the serious ones, in light and in dark, with what they are of."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE_SCRIPT)
    found = []
    for scheme, is_dark in (("light", 0), ("dark", 1)):
        page.emulate_media(color_scheme=scheme)
        expect(page.locator("body.dark")).to_have_count(is_dark)
        # Buttons take a while from the one colour to the other.
        page.wait_for_function("document.getAnimations().every((one) => !(one instanceof CSSTransition))")
        violations = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
        found += [
            (scheme, violation["id"], [node["html"][:120] for node in violation["nodes"]])
            for violation in violations
            if violation["impact"] in ("critical", "serious")
        ]
    return found


@pytest.fixture
def coloured(tab):
    yield
    tab.emulate_media(color_scheme="null")


def test_axe_finds_nothing_before_a_run(never_run, coloured, open_page, server):  # noqa: F811
    page = open_page(server)
    expect(page.locator("#examples button[aria-label]").first).to_be_visible(timeout=WAIT)
    assert findings(page) == []


def test_axe_finds_nothing_in_any_tab(coloured, open_page, embedded_server):
    page = open_page(embedded_server)
    wait_for_attention(page, 8)
    wait_for_sweep(page)
    for title in (title for titles in GROUPS.values() for title in titles):
        open_tab(page, title)
        if title in SECTIONS:
            wait_until_drawn(page, title)
        assert findings(page) == [], title
    page.get_by_text("What am I looking at?").click()
    assert findings(page) == []
    # What is shown is of an older question now.
    page.get_by_label("Question").fill("What is the red thing?")
    expect(page.locator("#full [data-older], #full[data-older]").first).to_be_visible(timeout=WAIT)
    assert findings(page) == []


def focused(page):
    return page.locator("*:focus")


def test_the_first_stop_skips_to_the_plots(page):
    wait_for_attention(page, 8)
    address = page.url
    page.keyboard.press("Tab")
    expect(focused(page)).to_have_text("Skip to the plots")
    expect(focused(page)).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("#tabs [role=tabpanel]:focus")).to_be_visible()
    assert page.url == address
    page.keyboard.press("Tab")
    expect(page.locator("#attention-quantity input:focus")).to_have_value("attention")
    page.locator("#attention-quantity input").last.focus()
    page.keyboard.press("Tab")
    expect(page.locator("#attention-strip button:focus")).to_have_text("last prompt token")


def test_galleries_and_tabs_are_one_stop_each_and_arrows_lead_through_them(page):
    wait_for_attention(page, 8)
    for group in ("#suggestions", "#examples", "#groups", "#tabs [role=tablist]", "#attention-strip"):
        assert page.locator(f"{group} button:visible").count() > 1
        expect(page.locator(f"{group} button:visible:not([tabindex='-1'])")).to_have_count(1)
    first, second, *_, last = page.locator("#examples button").all()
    first.focus()
    for key, reached in (("ArrowRight", second), ("ArrowLeft", first), ("ArrowLeft", last), ("ArrowRight", first)):
        page.keyboard.press(key)
        expect(reached).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#question textarea")).not_to_have_value("What is the blue thing?", timeout=WAIT)
    tabs = page.get_by_role("tab")
    tabs.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.get_by_role("tab", selected=True)).to_have_text("Where it looks")


def test_example_pictures_have_names(page):
    expect(page.get_by_role("button", name="Example picture: two shapes")).to_be_visible(timeout=WAIT)
    names = page.locator("#examples button").evaluate_all("buttons => buttons.map((button) => button.ariaLabel)")
    assert len(set(names)) == len(names)


def test_escape_closes_what_opened(page):
    wait_for_verdict(page)
    opened = page.locator(".about")
    opened.locator("summary").click()
    expect(opened).to_have_attribute("open", "")
    page.keyboard.press("Escape")
    expect(opened).not_to_have_attribute("open", "")
    expect(opened.locator("summary")).to_be_focused()
    page.get_by_role("button", name="Toggle Sidebar").click()
    expect(page.locator("#load-model")).to_be_in_viewport()
    page.keyboard.press("Escape")
    expect(page.locator("#load-model")).not_to_be_in_viewport()
    # The sidebar slides away below the pointer, and what comes below it opens what Escape has closed.
    page.wait_for_function("document.getAnimations().every((one) => one.playState !== 'running')")
    term = page.locator("#full .term").first
    term.focus()
    explanation = "element => getComputedStyle(element, '::after').display"
    assert term.evaluate(explanation) != "none"
    page.keyboard.press("Escape")
    assert term.evaluate(explanation) == "none"
    page.locator("#full .term").nth(1).focus()
    assert page.locator("#full .term").nth(1).evaluate(explanation) != "none"


def test_an_idle_page_asks_for_nothing_more_often_than_every_30_seconds(browser, server):
    page = browser.new_page()
    page.clock.install()
    page.goto(server)
    wait_for_attention(page, 8)
    expect(page.locator("#verdict")).not_to_contain_text("Running", timeout=WAIT)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    with page.expect_request("**", timeout=WAIT):
        page.clock.run_for(30_000)
    page.clock.run_for(90_000)
    assert LOOK_SECONDS >= 30
    assert 1 <= len([url for url in asked if "/gradio_api/" in url]) <= 5
    page.close()
