"""The choice of a picture's detail on the page, in a real browser."""

import re

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from playwright.sync_api import expect

from tests import saved_models
from tests.page.test_browser import WAIT
from tests.serving import served
from vtw_demo.comparison.calibration import CalibrationStore
from vtw_demo.models import picture_detail
from vtw_demo.models.processors import ClipProcessor
from vtw_demo.models.vision_language_model import VisionLanguageModel
from vtw_demo.page.examples import load_examples
from vtw_demo.server.engine import Engine


@pytest.fixture
def address(monkeypatch, tmp_path):
    """A page with a small SmolVLM, whose pictures have one tile at low, more at usual."""
    listed = {"low": {"size": {"longest_edge": saved_models.SIDE}}}
    monkeypatch.setitem(picture_detail._SETTINGS, "SmolVLMImageProcessor", listed)
    model, processor = saved_models.build("smolvlm")
    processor.video_processor = ClipProcessor("smolvlm", processor.image_processor, {})
    vlm = VisionLanguageModel("smolvlm", model, processor)
    with served(Engine(vlm, CalibrationStore.of(vlm, tmp_path))) as address:
        yield address


def chosen(page):
    return page.locator("#detail input")


def wait_for_tokens(page, count):
    expect(page.locator(".header .facts")).to_contain_text(f"{count} visual tokens", timeout=WAIT)


def test_each_detail_says_its_tokens_and_a_run_is_of_one(address, open_page):
    page = open_page(address)
    expect(chosen(page)).to_have_value(re.compile(r"^usual detail: \d+ tokens"), timeout=WAIT)
    usual = int(re.search(r"\d+", chosen(page).input_value())[0])
    wait_for_tokens(page, usual)
    expect(page.locator("#detail")).to_contain_text("With fewer than 100 visual tokens there is hardly anything")
    expect(page.locator("#live .live[data-layer]")).to_be_visible(timeout=WAIT)
    chosen(page).click()
    low = page.get_by_role("option", name=f"low detail: {saved_models.MERGED_TOKENS} tokens")
    low.click()
    expect(page.locator("#full [data-older]")).to_have_attribute("data-older", "Still of usual picture detail")
    page.get_by_role("button", name="Run", exact=True).click()
    wait_for_tokens(page, saved_models.MERGED_TOKENS)
    page.wait_for_url("**detail=low**", timeout=WAIT)
    page.get_by_role("button", name="Session").click()
    rows = page.locator("#history-table tbody tr")
    expect(rows).to_have_count(2, timeout=WAIT)
    assert "low" in rows.nth(0).inner_text().split("\t")
    assert "usual" in rows.nth(1).inner_text().split("\t")
    other = open_page(page.url)
    expect(chosen(other)).to_have_value(re.compile("^low"), timeout=WAIT)
    wait_for_tokens(other, saved_models.MERGED_TOKENS)


def test_programs_name_it_too(address):
    client, picture = Client(address, verbose=False), handle_file(load_examples()[0].picture)
    asked = (picture, "What is it?", 2, 2)
    results = [client.predict(*asked, *detail, api_name="/compare") for detail in ((), ("low",), ("usual",))]
    assert [result["detail"] for result in results] == ["usual", "low", "usual"]
    usual, low, again = (result["visual_tokens"] for result in results)
    assert usual == again > low == saved_models.MERGED_TOKENS
    with pytest.raises(AppError, match="Unknown picture detail 'much'"):
        client.predict(*asked, "much", api_name="/compare")


def test_a_model_with_one_size_says_so(open_page, server):
    page = open_page(server)
    expect(chosen(page)).to_have_value("one size: 196 tokens", timeout=WAIT)
    expect(chosen(page)).to_be_disabled()
