"""Many visitors of one real server: places in the queue, fairness, and a device that is free when nobody listens."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from playwright.sync_api import expect

from tests.page.test_browser import WAIT
from tests.serving import served
from vtw_demo.comparison.calibration import CalibrationStore
from vtw_demo.models.loading import load
from vtw_demo.page.examples import load_examples
from vtw_demo.server.engine import Engine
from vtw_demo.server.monitoring import Monitoring
from vtw_demo.server.queue import Turns

LAYER, CAP = 8, 16
PLACES = 3
QUESTIONS = ("Describe the picture.", "How many shapes are there?", "What is there?")


class Ended(Monitoring):
    """Knows how the turns ended, too."""

    def __init__(self):
        super().__init__()
        self.ended = []

    def ran(self, kind, outcome, waited_seconds, seconds):
        super().ran(kind, outcome, waited_seconds, seconds)
        self.ended.append((kind, outcome, seconds))


@pytest.fixture(scope="module")
def engine(small_folder, tmp_path_factory):
    """Its model never ends an answer by itself."""
    monitoring = Ended()
    vlm = load(str(small_folder), device="cpu")
    vlm.model.generation_config.eos_token_id = None
    store = CalibrationStore(tmp_path_factory.mktemp("cache"))
    return Engine(vlm, store, Turns(PLACES, monitoring), monitoring)


@pytest.fixture(scope="module")
def address(engine):
    with served(engine, LAYER) as address:
        yield address


@pytest.fixture
def visit(browser, address):
    """Opens the page as another visitor."""
    pages = []

    def open_page():
        page = browser.new_context(viewport={"width": 1440, "height": 1000}).new_page()
        pages.append(page)
        page.goto(address)
        expect(page.locator("#verdict")).not_to_contain_text("Starting", timeout=WAIT)
        return page

    yield open_page
    for page in pages:
        page.context.close()


@pytest.fixture
def held(engine, address):
    """While this is held, the model's passes take half a second each; what it gives has their times."""
    ask(address)  # whatever the test before has left is over then
    with held_back(engine, 0.5) as passes:
        yield passes


@contextmanager
def held_back(engine, seconds):
    passes, free = [], threading.Event()

    def wait(*_):
        passes.append(time.monotonic())
        free.wait(seconds)

    handle = engine.vlm.model.get_decoder().register_forward_pre_hook(wait)
    try:
        yield passes
    finally:
        handle.remove()
        free.set()


def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ask(address, question=QUESTIONS[0], number=0, layer=LAYER):
    picture = handle_file(load_examples()[number].picture)
    return Client(address, verbose=False).predict(picture, question, layer, CAP, api_name="/compare")


def stream(address, question=QUESTIONS[0]):
    """A program's request, sent, with the connection on which its answer would come."""
    client = httpx.Client(base_url=address, timeout=60, trust_env=False)
    path = load_examples()[0].picture
    sent = client.post("/gradio_api/upload", files={"files": (path.name, path.read_bytes())})
    picture = {"path": sent.json()[0], "meta": {"_type": "gradio.FileData"}}
    data = {"data": [picture, question, LAYER, CAP]}
    event = client.post("/gradio_api/call/compare", json=data).json()["event_id"]
    return client, client.stream("GET", f"/gradio_api/call/compare/{event}")


def test_each_visitor_gets_the_answer_that_they_get_alone(address):
    wanted = [(question, number, layer) for number, question in enumerate(QUESTIONS) for layer in (4, 9)]
    alone = [ask(address, question, number, layer) for question, number, layer in wanted]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda one: ask(address, *one), wanted * 2))
    for (_, _, layer), expected, got in zip(wanted * 2, alone * 2, together, strict=True):
        assert got["layer"] == layer
        assert got["full"]["tokens"] == expected["full"]["tokens"]
        assert got["withdrawn"]["tokens"] == expected["withdrawn"]["tokens"]


def test_who_waits_sees_their_place_and_how_long_it_will_take(engine, address, visit, held):
    page = visit()
    client, answer = stream(address)
    with closing(client), answer:
        until(lambda: held)
        page.locator("#examples button").first.click()
        expect(page.locator("#verdict")).to_contain_text("You are next; about", timeout=WAIT)
        assert engine.turns.waiting == 1


def test_a_full_queue_says_so_at_once(engine, address, held):
    with ThreadPoolExecutor(PLACES + 1) as pool:
        waiting = [pool.submit(ask, address) for _ in range(PLACES + 1)]
        until(lambda: engine.turns.waiting == PLACES)
        with pytest.raises(AppError, match=rf"^The queue is full: {PLACES} requests wait already. Try again in about"):
            ask(address)
        assert not any(one.done() for one in waiting)
        engine.vlm.model.get_decoder()._forward_pre_hooks.clear()
        assert all(one.result()["full"]["tokens"] for one in waiting)


def test_a_calibration_lets_others_go_first(engine, address, visit):
    page = visit()
    ask(address)
    with held_back(engine, 0.05):
        page.locator("#calibrate").click()
        expect(page.locator("#choose-k-reading")).to_contain_text("samples at every K.", timeout=WAIT)
        ask(address)
        # It was answered between two samples, and the calibration goes on.
        expect(page.locator("#choose-k-reading")).to_contain_text("samples at every K.")
        page.locator("#stop").click()
        expect(page.locator("#choose-k-reading")).to_contain_text("Stopped.", timeout=WAIT)


def test_a_stopped_answer_keeps_its_text_and_what_is_ended_is_said(engine, address, visit):
    page = visit()
    ask(address)
    with held_back(engine, 0.05):
        for ended_by in ("#stop", "#calibrate"):
            page.locator("#run").click()
            expect(page.locator("#full .progress")).to_contain_text("so far", timeout=WAIT)
            expect(page.locator("#full .answer")).not_to_have_text("", timeout=WAIT)
            page.locator(ended_by).click()
            expect(page.locator("#full .progress")).to_contain_text("Stopped after", timeout=WAIT)
            expect(page.locator("#verdict")).to_contain_text("Stopped before both answers", timeout=WAIT)
            expect(page.locator("#full .answer")).not_to_have_text("")
            expect(page.locator(".running")).to_have_count(0)
        expect(page.get_by_text("This ended the comparison in hand.")).to_be_visible(timeout=WAIT)
        expect(page.locator("#choose-k-reading")).to_contain_text("samples at every K.", timeout=WAIT)
        expect(page.locator(".running")).to_have_count(0)
        page.locator("#stop").click()
        expect(page.locator("#choose-k-reading")).to_contain_text("Stopped.", timeout=WAIT)


def stopped_after(engine, passes, leave):
    """How many more passes of the model began once `leave` was done, until the comparison in hand had ended."""
    ended = len(engine.monitoring.ended)
    until(lambda: passes)
    leave()
    left = len(passes)
    until(lambda: len(engine.monitoring.ended) > ended)
    assert engine.monitoring.ended[ended][:2] == ("comparison", "stopped")
    return len(passes) - left


# Gradio looks for lost connections and closed tabs about once a second: the pass in hand, and those that begin by then.
NOTICED_WITHIN_PASSES = 5


def test_a_lost_connection_frees_the_model(engine, address, held):
    client, answer = stream(address)

    def leave():
        answer.__exit__(None, None, None)
        client.close()

    answer.__enter__()
    assert stopped_after(engine, held, leave) <= NOTICED_WITHIN_PASSES
    assert ask_soon(engine, address)


def test_a_closed_tab_frees_the_model(engine, address, visit, held):
    page = visit()
    page.locator("#examples button").first.click()
    assert stopped_after(engine, held, page.close) <= NOTICED_WITHIN_PASSES
    assert ask_soon(engine, address)


def test_stop_frees_the_model_within_a_token(engine, address, visit, held):
    page = visit()
    page.locator("#examples button").first.click()
    assert stopped_after(engine, held, page.locator("#stop").click) <= 2
    expect(page.locator("#verdict")).to_contain_text("Stopped before both answers were complete.", timeout=WAIT)
    assert ask_soon(engine, address)


def ask_soon(engine, address):
    """The next request, at full speed."""
    engine.vlm.model.get_decoder()._forward_pre_hooks.clear()
    return ask(address)["full"]["tokens"]
