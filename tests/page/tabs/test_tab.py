"""What a tab in view has measured, in a real browser."""

import re
import time
from dataclasses import replace

import pytest
from playwright.sync_api import expect

from tests.page.test_browser import WAIT, wait_for_verdict
from tests.page.test_sections import open_tab, wait_for_section, wait_until_drawn
from tests.serving import served
from vtw_demo.comparison import analysis
from vtw_demo.comparison.calibration import CalibrationStore
from vtw_demo.server.engine import Engine

# Clicks one after the other, as fast as the page can take them.
CLICK_THROUGH = """async (titles) => {
  const tabs = [...document.querySelectorAll("#tabs [role=tab]")];
  for (const title of titles) {
    tabs.find((tab) => tab.textContent.trim() === title).click();
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}"""


@pytest.fixture(scope="module")
def measured():
    """The names of what has been measured of comparisons, in order."""
    names = []

    def counting(row):
        def measure(*given):
            names.append(row.name)
            return row.measure(*given)

        return replace(row, measure=measure)

    with pytest.MonkeyPatch.context() as patch:
        for name, row in analysis.MEASUREMENTS.items():
            patch.setitem(analysis.MEASUREMENTS, name, counting(row))
        yield names


@pytest.fixture(scope="module")
def engine(small, tmp_path_factory, measured):
    return Engine(small, CalibrationStore(tmp_path_factory.mktemp("calibration")))


@pytest.fixture(scope="module")
def address(engine):
    with served(engine, 8) as address:
        yield address


@pytest.fixture
def page(address, open_page):
    """After the first comparison, when all that belongs to it is measured."""
    page = open_page(address)
    wait_for_verdict(page)
    open_tab(page, "History")
    expect(page.locator("#history-table tbody tr")).to_have_count(1, timeout=WAIT)
    return page


def wait_until(holds):
    deadline = time.monotonic() + WAIT / 1000
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_quick_clicks_through_tabs_measure_only_what_is_in_view_at_last(page, measured):
    before = len(measured)
    page.evaluate(CLICK_THROUGH, ["Where it looks", "Migration", "Staircase", "Word by word", "Differences"])
    wait_until_drawn(page, "Differences")
    assert measured[before:] == ["probabilities"]
    wait_for_section(page, "Migration")
    assert measured[before:] == ["probabilities", "migration"]


def test_a_tab_that_is_left_gives_up_its_place(page, engine, measured):
    before = len(measured)
    with engine.turns.asked("another visitor", "comparison") as turn:
        list(turn.wait())
        open_tab(page, "Migration")
        expect(page.locator("#migration-reading")).to_contain_text(re.compile("You are next"), timeout=WAIT)
        assert engine.turns.waiting == 1
        open_tab(page, "History")
        wait_until(lambda: engine.turns.waiting == 0)
    wait_for_section(page, "Differences")
    assert measured[before:] == ["probabilities"]
    # What was given up is measured when one comes back.
    wait_for_section(page, "Migration")
    assert measured[before:] == ["probabilities", "migration"]


def test_a_run_draws_nothing_for_a_tab_that_is_not_in_view(page, measured):
    wait_for_section(page, "Migration")
    open_tab(page, "Take away")
    before = len(measured)
    page.get_by_role("button", name="Run", exact=True).click()
    open_tab(page, "History")
    expect(page.locator("#history-table tbody tr")).to_have_count(2, timeout=WAIT)
    assert "migration" not in measured[before:]
