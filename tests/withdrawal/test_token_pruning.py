"""Several threads with one model: each answers as alone, or is told that it can't."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from packaging.version import Version
from transformers.generation.streamers import BaseStreamer

from tests.tiny_models import build
from vtw_demo.measurements.attention import measure_attention
from vtw_demo.measurements.head import logits_of
from vtw_demo.measurements.layer_sweep import sweep
from vtw_demo.withdrawal.architectures import find_decoder
from vtw_demo.withdrawal.baselines import withdraw_renumbered
from vtw_demo.withdrawal.prune import prune
from vtw_demo.withdrawal.withdraw import withdraw

pytestmark = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.1"), reason="its models can't answer in threads, withdrawn or not"
)
TINY = build("llava")
QUERIES = [
    TINY.prompt([1, 2, 3, "image", 4, 5, 6]),
    TINY.prompt([1, "image", 7]),
    TINY.prompt([9, "image", 4, "image", 5, 6, 8, 10, 11]),
    TINY.prompt([1, 2, 3, 4]),
    TINY.prompt([1, "image", 2, 3], [4, 5, "image", 6, 7, 8]),
]
GENERATE = {"max_new_tokens": 8, "do_sample": False, "suppress_tokens": [TINY.model.config.image_token_id]}


@pytest.fixture(params=["sdpa", "eager"])
def model(request):
    TINY.model.set_attn_implementation(request.param)
    yield TINY.model
    TINY.model.set_attn_implementation("sdpa")


def answer(model, inputs, **options):
    with torch.no_grad():
        return model.generate(**inputs, **GENERATE, **options).tolist()


def in_threads(model, times=4):
    """What each query is answered in a thread of its own, again and again, all threads at once."""
    begin = threading.Barrier(len(QUERIES))

    def ask(inputs):
        begin.wait(60)
        return [answer(model, inputs) for _ in range(times)]

    with ThreadPoolExecutor(len(QUERIES)) as threads:
        return [*threads.map(ask, QUERIES)]


@pytest.mark.parametrize(
    "context",
    [
        lambda model: withdraw(model, 2),
        lambda model: withdraw(model, 1),
        lambda model: withdraw(model, 4),
        lambda model: withdraw_renumbered(model, 2),
    ],
)
def test_threads_in_one_block_answer_as_alone(model, context):
    with context(model):
        alone = [answer(model, inputs) for inputs in QUERIES]
        assert in_threads(model) == [[each] * 4 for each in alone]


def test_threads_under_other_prunings():
    one_row = QUERIES[:4]
    for recipe in ("2:fastv:0.5", "2:random_tokens:0", "0:uniform_grid:0.75;1:fastv:0.5;3:withdraw"):
        with prune(TINY.model, recipe), ThreadPoolExecutor(4) as threads:
            alone = [answer(TINY.model, inputs) for inputs in one_row]
            for _ in range(5):
                assert [*threads.map(lambda inputs: answer(TINY.model, inputs), one_row)] == alone


def test_blocks_follow_each_other_while_threads_go_on_answering():
    """Each answer is one of a block or one of none: a pass is never left halfway."""
    inputs, told, stop = QUERIES[0], [], threading.Event()

    def last_logits():
        with torch.no_grad():
            return TINY.model(**inputs, use_cache=False).logits[0, -1]

    def ask():
        while not stop.is_set():
            told.append(last_logits())

    full = last_logits()
    with withdraw(TINY.model, 2):
        withdrawn = last_logits()
    with ThreadPoolExecutor(2) as threads:
        asking = [threads.submit(ask) for _ in range(2)]
        try:
            for _ in range(40):
                with withdraw(TINY.model, 2):
                    last_logits()
        finally:
            stop.set()
        for each in asking:
            each.result()
    kinds = [(torch.allclose(each, full, atol=1e-5), torch.allclose(each, withdrawn, atol=1e-5)) for each in told]
    assert set(kinds) <= {(True, False), (False, True)}
    assert len(told) > 20


class Held(BaseStreamer):
    """Holds a generation after three tokens until it is let go."""

    def __init__(self):
        self.count, self.begun, self.let_go = 0, threading.Event(), threading.Event()

    def put(self, value):
        self.count += 1
        if self.count == 4:
            self.begun.set()
            assert self.let_go.wait(60)

    def end(self):
        pass


def held_generation(model, threads):
    held = Held()
    answering = threads.submit(answer, model, QUERIES[0], streamer=held)
    assert held.begun.wait(60)
    return held, answering


def test_a_generation_that_outlives_its_block_is_told(model):
    with ThreadPoolExecutor(1) as threads:
        with withdraw(model, 2):
            held, answering = held_generation(model, threads)
        held.let_go.set()
        with pytest.raises(RuntimeError, match=r"filled inside `with withdraw.*in this thread or another"):
            answering.result()


def test_a_generation_that_comes_into_a_block_of_another_layer_is_told(model):
    with ThreadPoolExecutor(1) as threads:
        with withdraw(model, 2):
            held, answering = held_generation(model, threads)
        with withdraw(model, 3):
            held.let_go.set()
            with pytest.raises(RuntimeError, match="filled with withdrawal layer 2, and is used now with 3"):
                answering.result()


def test_a_generation_that_began_before_the_block_goes_on_without_withdrawal(model):
    alone = answer(model, QUERIES[0])
    with ThreadPoolExecutor(1) as threads:
        held, answering = held_generation(model, threads)
        with withdraw(model, 2):
            held.let_go.set()
            assert answering.result() == alone


def test_a_pass_that_is_under_way_when_the_block_begins_is_left_alone():
    begun, let_go = threading.Event(), threading.Event()

    def hold(*_):
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            assert let_go.wait(60)

    alone = answer(TINY.model, QUERIES[0], use_cache=False)
    hook = find_decoder(TINY.model).layers[1].register_forward_hook(hold)
    try:
        with ThreadPoolExecutor(1) as threads:
            passing = threads.submit(lambda: TINY.model(**QUERIES[0]).logits)
            assert begun.wait(60)
            with withdraw(TINY.model, 2):
                let_go.set()
                logits = passing.result()
    finally:
        hook.remove()
    assert int(logits[0, -1, : GENERATE["suppress_tokens"][0]].argmax()) == alone[0][QUERIES[0]["input_ids"].shape[1]]
    torch.testing.assert_close(logits, TINY.model(**QUERIES[0]).logits)


def test_leaving_waits_for_another_threads_pass():
    begun, let_go, left = threading.Event(), threading.Event(), threading.Event()

    def hold(*_):
        begun.set()
        assert let_go.wait(60)

    with withdraw(TINY.model, 2):
        expected = TINY.model(**QUERIES[0]).logits
    hook = find_decoder(TINY.model).layers[1].register_forward_hook(hold)
    try:
        with ThreadPoolExecutor(2) as threads:

            def enter_and_leave():
                with withdraw(TINY.model, 2):
                    passing = threads.submit(lambda: TINY.model(**QUERIES[0]).logits)
                    assert begun.wait(60)
                left.set()
                return passing.result()

            done = threads.submit(enter_and_leave)
            assert begun.wait(60)
            assert not left.wait(0.2)
            let_go.set()
            torch.testing.assert_close(done.result(), expected)
    finally:
        hook.remove()


def test_with_this_thread_only_the_others_go_on_as_ever(model):
    full = [answer(model, inputs) for inputs in QUERIES]
    with withdraw(model, 2):
        withdrawn = answer(model, QUERIES[0])
    with withdraw(model, 2, this_thread_only=True):
        assert in_threads(model, 2) == [[each] * 2 for each in full]
        assert answer(model, QUERIES[0]) == withdrawn


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_measuring_leaves_other_threads_alone(attention):
    TINY.model.set_attn_implementation(attention)
    inputs, stop = QUERIES[0], threading.Event()
    with torch.no_grad():
        full = TINY.model(**inputs, use_cache=False).logits

    def ask():
        told = []
        while not stop.is_set():
            with torch.no_grad():
                told.append(TINY.model(**inputs, use_cache=False).logits)
        return told

    with ThreadPoolExecutor(1) as threads:
        asking = threads.submit(ask)
        try:
            for _ in range(40):
                swept = sweep(TINY.model, inputs)
                mass = measure_attention(TINY.model, inputs, layer=2)
        finally:
            stop.set()
        told = asking.result()
    torch.testing.assert_close(torch.stack(told), torch.stack([full] * len(told)))
    torch.testing.assert_close(swept.kl, sweep(TINY.model, inputs).kl)
    assert mass == measure_attention(TINY.model, inputs, layer=2)
    assert logits_of(TINY.model, torch.zeros(3, TINY.model.config.text_config.hidden_size), 1, None).shape[0] == 3
    TINY.model.set_attn_implementation("sdpa")
