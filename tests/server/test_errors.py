"""A device without memory, a layer, a tokenizer or a plot that fails: said in a sentence, and the next request works.

A real server in this process, with a small model; what fails is made to fail where it would.
"""

import logging
import threading
import weakref
from contextlib import contextmanager

import httpx
import plotly.graph_objects as go
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from playwright.sync_api import expect

from tests.page.test_browser import WAIT
from tests.serving import served
from vtw_demo.comparison.analysis import Analysis, Part
from vtw_demo.comparison.calibration import CalibrationStore
from vtw_demo.page.examples import load_examples
from vtw_demo.server.engine import Engine
from vtw_demo.server.errors import DISK_FULL, FAILED, OUT_OF_MEMORY, REFUSED, SENTENCES, fault_of
from vtw_demo.server.query import Query

LAYER, CAP = 8, 6
QUESTION = "What is the secret shape?"


@pytest.fixture(scope="module")
def engine(small, tmp_path_factory):
    return Engine(small, CalibrationStore(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def address(engine):
    with served(engine, LAYER) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    return Client(address, verbose=False)


@pytest.fixture
def query():
    return Query(Image.open(load_examples()[0].picture).convert("RGB"), QUESTION, LAYER, CAP)


def asked(client):
    return client.predict(handle_file(load_examples()[0].picture), QUESTION, LAYER, CAP, api_name="/compare")


def out_of_cpu_memory(held):
    """As in a run that has taken much already."""
    big = torch.zeros(20_000_000)
    held.append(weakref.ref(big))
    torch.empty(2**55)


def out_of_gpu_memory(held):
    big = torch.zeros(20_000_000)
    held.append(weakref.ref(big))
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def fails(*_, **__):
    raise KeyError(QUESTION)


def refuses(held):
    raise ValueError(f"no sentence for visitors: {QUESTION}")


@contextmanager
def failing(engine, fault, when):
    """The layer after LAYER meets `fault` in those forward passes in which `when` holds for its input's length."""
    held = []

    def before(module, args, kwargs):
        states = args[0] if args else kwargs["hidden_states"]
        if when(states.shape[1]):
            fault(held)

    layer = engine.vlm.model.get_decoder().layers[LAYER + 1]
    handle = layer.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield held
    finally:
        handle.remove()


def in_full_run(length):
    return length > 100


def in_withdrawn_run(length):
    return 1 < length < 100


FAULTS = {out_of_cpu_memory: OUT_OF_MEMORY, out_of_gpu_memory: OUT_OF_MEMORY, fails: FAILED, refuses: FAILED}


@pytest.mark.parametrize("when", [in_full_run, in_withdrawn_run])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_that_fails_says_so_frees_its_memory_and_the_next_one_answers(engine, client, fault, when, caplog):
    before = asked(client)
    with failing(engine, fault, when) as held, caplog.at_level(logging.INFO), pytest.raises(AppError) as failure:
        asked(client)
    assert str(failure.value) == SENTENCES[FAULTS[fault]]
    assert [reference() for reference in held] == [None] * len(held)
    for record in caplog.records:
        assert "secret" not in record.getMessage()
    after = asked(client)
    for run in ("full", "withdrawn"):
        assert after[run]["tokens"] == before[run]["tokens"]


PARTS = (Part("sweep"), Part("attention", "full"), Part("attention", "withdrawn"), Part("attention_maps", "full"))


@pytest.mark.parametrize("part", PARTS, ids=lambda part: f"{part.name} {part.run}")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_measurement_that_fails_is_measured_the_next_time(engine, query, fault, part):
    comparison = engine.compare_to_end("a", engine.vlm, query, threading.Event()).comparison
    analysis = Analysis(engine.vlm, query.prompt(engine.vlm), comparison)

    def measure():
        list(engine.measure("a", analysis, part, threading.Event()))

    kinds = (KeyError, ValueError, RuntimeError)
    with failing(engine, fault, lambda length: length > 1) as held, pytest.raises(kinds) as failure:
        measure()
    assert fault_of(failure.value).kind == FAULTS[fault]
    assert analysis.known(part) is None
    if FAULTS[fault] == OUT_OF_MEMORY:
        assert [reference() for reference in held] == [None] * len(held)
    measure()
    assert analysis.known(part) is not None
    again = engine.compare_to_end("a", engine.vlm, query, threading.Event())
    assert again.comparison.full.tokens == comparison.full.tokens


def test_a_tokenizer_that_fails(engine, client, monkeypatch):
    before = asked(client)
    with monkeypatch.context() as patch:
        patch.setattr(type(engine.vlm.processor.tokenizer), "__call__", fails)
        with pytest.raises(AppError) as failure:
            asked(client)
    assert str(failure.value) == SENTENCES[FAILED]
    assert asked(client)["full"]["tokens"] == before["full"]["tokens"]


def test_a_plot_that_fails_leaves_the_answers_and_the_other_plots(engine, address, browser, monkeypatch):
    page = browser.new_page(viewport={"width": 1440, "height": 1000})
    try:
        with monkeypatch.context() as patch:
            patch.setattr(go.Figure, "update_layout", fails)
            page.goto(address)
            page.locator("#examples button").first.click()
            expect(page.locator("#attention-reading .problem")).to_have_text(SENTENCES[FAILED], timeout=WAIT)
            expect(page.locator("#withdrawn")).to_contain_text("prefill", ignore_case=True)
            expect(page.locator("#verdict .problem")).to_have_count(0)
        page.locator("#run").click()
        expect(page.locator("#attention .main-svg").first).to_be_visible(timeout=WAIT)
        expect(page.locator("#attention-reading .problem")).to_have_count(0)
    finally:
        page.close()


def test_on_the_page_a_lack_of_memory_is_said_and_the_next_run_works(engine, address, browser):
    page = browser.new_page(viewport={"width": 1440, "height": 1000})
    try:
        with failing(engine, out_of_gpu_memory, in_full_run):
            page.goto(address)
            page.locator("#examples button").first.click()
            expect(page.locator("#verdict .problem")).to_have_text(SENTENCES[OUT_OF_MEMORY], timeout=WAIT)
        page.locator("#run").click()
        expect(page.locator("#verdict .problem")).to_have_count(0, timeout=WAIT)
        expect(page.locator("#withdrawn")).to_contain_text("prefill", timeout=WAIT, ignore_case=True)
    finally:
        page.close()


def test_faults_are_counted_by_kind_and_turns_by_how_they_ended(small, tmp_path):
    # An engine of its own: on the others' a turn of a page that was just closed may still be ending.
    engine = Engine(small, CalibrationStore(tmp_path))
    with served(engine, LAYER) as address:
        faults_are_counted(engine, Client(address, verbose=False), address)


def faults_are_counted(engine, client, address):
    def count(line):
        lines = httpx.get(f"{address}/metrics", trust_env=False).text.splitlines()
        return sum(float(found.rsplit(" ", 1)[1]) for found in lines if found.startswith(line))

    def counts():
        return [count(f'vtw_errors_total{{kind="{kind}"}}') for kind in (OUT_OF_MEMORY, FAILED, REFUSED)]

    before, ran = counts(), count('vtw_runs_total{kind="comparison",outcome="out of memory"}')
    for fault in (out_of_cpu_memory, fails):
        with failing(engine, fault, in_full_run), pytest.raises(AppError):
            asked(client)
    with pytest.raises(AppError):
        client.predict(handle_file(load_examples()[0].picture), "", LAYER, CAP, api_name="/compare")
    assert counts() == [number + 1 for number in before]
    assert count('vtw_runs_total{kind="comparison",outcome="out of memory"}') == ran + 1


def test_a_full_disk_has_a_sentence():
    fault = fault_of(OSError(28, "No space left on device"))
    assert (fault.kind, fault.sentence) == (DISK_FULL, SENTENCES[DISK_FULL])
