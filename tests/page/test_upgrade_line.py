"""The larger model on the page: `python app.py` without `--model`, a local hub in reach, and a browser."""

import re
import threading
from contextlib import contextmanager

import pytest
import torch
from playwright.sync_api import expect

from tests import saved_models
from tests.hub_server import NOBODY, hub_server
from tests.serving import started
from vtw_demo.models import hardware
from vtw_demo.page.examples import load_examples

SUITED, OTHER = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct", "Qwen/Qwen3-VL-2B-Instruct"
WAIT = 90_000
PHOTO = next(example for example in load_examples() if example.is_photo)

pytestmark = pytest.mark.skipif(
    hardware.free_memory(torch.device("cpu")) < 5 * 10**9, reason="too little memory for the model that is suggested"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """What the hub has, by id: small ones by the names of the large."""
    smolvlm, qwen = tmp_path_factory.mktemp("smolvlm"), tmp_path_factory.mktemp("qwen")
    saved_models.save("smolvlm", smolvlm)
    saved_models.save("qwen3_vl", qwen)
    return {SUITED: smolvlm, OTHER: qwen}


@contextmanager
def page_with_hub(folder, address, *arguments):
    """The address of a page that asks that hub."""
    variables = {"HF_ENDPOINT": address, "HF_HOME": str(folder / "hub"), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": ""}
    with started(folder, *arguments, **variables) as (url, _, _):
        yield url


def has_answered(page, model):
    expect(page.locator(".header")).to_contain_text(model, timeout=WAIT)
    expect(page.locator("#withdrawn")).to_contain_text("prefill", timeout=WAIT, ignore_case=True)
    expect(page.locator("#verdict .verdict[data-of]")).to_be_visible(timeout=WAIT)


def test_it_can_be_stopped_refused_for_good_and_fetched_and_then_answers(models, open_page, tmp_path):
    goes_on = threading.Event()
    half = (models[SUITED] / "model.safetensors").stat().st_size // 2
    with (
        hub_server(models, breaks_at=half, goes_on=goes_on) as (address, _),
        page_with_hub(tmp_path, address) as url,
    ):
        page = open_page(url)
        line = page.locator("#upgrade-line")
        expect(line).to_contain_text(re.compile(rf"Downloading {SUITED}: .* GB, .*B/s"), timeout=WAIT)
        has_answered(page, "embedded")
        assert "model=" not in page.url
        page.locator("#upgrade-stop").click()
        expect(line).to_contain_text("Stopped; what has come is kept. The embedded model goes on.")
        expect(page.locator("#upgrade-stop")).to_be_hidden()
        page.locator("#upgrade-begin").click()
        expect(line).to_contain_text("Downloading", timeout=WAIT)
        page.locator("#upgrade-never").click()
        expect(line).to_contain_text("Nothing is fetched, as this browser was told.")
        page.reload()
        expect(line).to_contain_text("Nothing is fetched, as this browser was told.", timeout=WAIT)
        has_answered(page, "embedded")
        page.locator("#upgrade-begin").click()
        expect(line).to_contain_text("Downloading", timeout=WAIT)
        expect(page.locator("#upgrade-begin")).to_be_hidden()
        goes_on.set()
        expect(line).to_contain_text(f"Now running {SUITED}: no GPU is used", timeout=WAIT)
        expect(line).to_contain_text("Here it is asked about a photo.")
        expect(page.get_by_label("Question")).to_have_value(PHOTO.question, timeout=WAIT)
        has_answered(page, SUITED)
        page.wait_for_url(re.compile(f"example={PHOTO.picture.stem}.*model=HuggingFaceTB"), timeout=WAIT)
        expect(page.locator("#upgrade button:visible")).to_have_count(0)
        # Who comes later sees it from the start.
        page = open_page(url)
        expect(page.get_by_label("Question")).to_have_value(PHOTO.question, timeout=WAIT)
        has_answered(page, SUITED)
        expect(page.locator("#note .problem")).to_have_count(0)


def test_a_link_names_one_and_an_own_question_is_kept(models, open_page, tmp_path):
    with hub_server(models) as (address, asked), page_with_hub(tmp_path, address) as url:
        page = open_page(f"{url}/?model={OTHER}&layer=1&question=Is+it+there%3F&example=two-shapes")
        has_answered(page, OTHER)
        expect(page.locator("#layer input[type=number]")).to_have_value("1")
        expect(page.get_by_label("Question")).to_have_value("Is it there?")
        page.wait_for_url(re.compile(f"example={PHOTO.picture.stem}"), timeout=WAIT)
        expect(page.locator("#note .problem")).to_have_count(0)
    assert not [path for path in asked if SUITED in path]


def test_without_a_hub_it_says_why_the_embedded_one_answers(open_page, tmp_path):
    with page_with_hub(tmp_path, NOBODY) as url:
        page = open_page(url)
        said = f"Running the embedded model, not {SUITED}: The model '{SUITED}' is not, or not whole, in this machine's"
        expect(page.locator("#upgrade-line")).to_contain_text(said, timeout=WAIT)
        has_answered(page, "embedded")


def test_where_a_model_is_named_there_is_no_such_line(server, open_page):
    page = open_page(server)
    expect(page.locator("#verdict .verdict[data-of]")).to_be_visible(timeout=WAIT)
    expect(page.locator("#upgrade")).to_have_count(0)
