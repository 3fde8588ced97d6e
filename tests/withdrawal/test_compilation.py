"""Whatever torch.compile has made of a model before or makes of it inside, it withdraws; and is itself again after."""

import copy
import threading

import pytest
import torch

from tests.grids import nightly_but
from tests.tiny_models import build
from vtw_demo.measurements.attention import measure_attention
from vtw_demo.measurements.layer_sweep import sweep
from vtw_demo.withdrawal.architectures import find_decoder
from vtw_demo.withdrawal.compilation import uncompiled
from vtw_demo.withdrawal.fastv import fastv
from vtw_demo.withdrawal.withdraw import withdraw

TINY = build("llava")
INPUTS = TINY.prompt([1, 2, 3, "image", 4, 5, 6])
GENERATE = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [TINY.model.config.image_token_id]}


@pytest.fixture(autouse=True)
def forget_traces():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def last_logits(model):
    with torch.no_grad():
        return model(**INPUTS, use_cache=False).logits[:, -1]


def whole(model):
    return torch.compile(model, backend="eager")


def in_place(model):
    model.compile(backend="eager")
    return model


def forward(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def language_model(model):
    model.model.language_model.compile(backend="eager")
    return model


def wrapped_language_model(model):
    model.model.language_model = torch.compile(model.model.language_model, backend="eager")
    return model


def language_forward(model):
    language = model.model.language_model
    language.forward = torch.compile(language.forward, backend="eager")
    return model


def each_layer(model):
    for layer in find_decoder(model).layers:
        layer.compile(backend="eager")
    return model


def wrapped_layers(model):
    layers = find_decoder(model).layers
    for index, layer in enumerate(layers):
        layers[index] = torch.compile(layer, backend="eager")
    return model


def attention_alone(model):
    for layer in find_decoder(model).layers:
        layer.self_attn.compile(backend="eager")
    return model


COMPILED = [
    whole,
    in_place,
    forward,
    language_model,
    wrapped_language_model,
    language_forward,
    each_layer,
    wrapped_layers,
    attention_alone,
]


@pytest.fixture(scope="module")
def expected():
    """Last logits, full and withdrawn at K = 2, and the withdrawn answer, of the model as it is written."""
    full = last_logits(TINY.model)
    with withdraw(TINY.model, 2):
        withdrawn, answer = last_logits(TINY.model), TINY.model.generate(**INPUTS, **GENERATE)
    assert not torch.allclose(full, withdrawn, atol=1e-3)
    return full, withdrawn, answer


# Tracing the whole of a model takes a dozen times as long as its language model.
DAILY = [(compiled, True) for compiled in COMPILED if compiled not in (whole, forward)] + [(each_layer, False)]


@pytest.mark.parametrize(
    ("compiled", "is_traced_before"), nightly_but(DAILY, [*DAILY, (whole, True), (whole, False), (forward, True)])
)
def test_a_compiled_model_withdraws_inside_and_only_there(compiled, is_traced_before, expected):
    full, withdrawn, answer = expected
    model = compiled(copy.deepcopy(TINY.model))
    if is_traced_before:
        torch.testing.assert_close(last_logits(model), full)
    with withdraw(model, 2):
        torch.testing.assert_close(last_logits(model), withdrawn)
        assert torch.equal(model.generate(**INPUTS, **GENERATE), answer)
    torch.testing.assert_close(last_logits(model), full)


@pytest.mark.nightly
def test_a_function_that_was_compiled_around_the_model(expected):
    full, withdrawn, _ = expected
    asked = torch.compile(lambda **inputs: TINY.model(**inputs).logits[:, -1], backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(asked(**INPUTS), full)
        with withdraw(TINY.model, 2):
            torch.testing.assert_close(asked(**INPUTS), withdrawn)
        torch.testing.assert_close(asked(**INPUTS), full)


@pytest.mark.nightly
def test_reduced_overhead(expected):
    full, withdrawn, _ = expected
    model = torch.compile(copy.deepcopy(TINY.model), mode="reduce-overhead")
    torch.testing.assert_close(last_logits(model), full)
    with withdraw(model, 2):
        torch.testing.assert_close(last_logits(model), withdrawn)
    torch.testing.assert_close(last_logits(model), full)


@pytest.mark.parametrize("compiled", nightly_but([language_model], [language_model, whole]))
def test_measurements_of_a_compiled_model(compiled):
    model = compiled(copy.deepcopy(TINY.model))
    last_logits(model)
    torch.testing.assert_close(sweep(model, INPUTS).kl, sweep(TINY.model, INPUTS).kl)
    assert measure_attention(model, INPUTS, layer=2) == measure_attention(TINY.model, INPUTS, layer=2)
    assert measure_attention(model, INPUTS) == measure_attention(TINY.model, INPUTS)
    with fastv(model, 2, 0.5):
        dropped = last_logits(model)
    with fastv(TINY.model, 2, 0.5):
        torch.testing.assert_close(dropped, last_logits(TINY.model))


def test_layers_that_run_without_their_hooks_are_told():
    """As in a captured CUDA graph, whose kernels run again without any of the model's Python."""
    model, captured = copy.deepcopy(TINY.model), copy.deepcopy(TINY.model.model.language_model)
    model.model.language_model.forward = lambda inputs_embeds=None, **_: captured(inputs_embeds=inputs_embeds)
    with withdraw(model, 2), pytest.raises(RuntimeError, match=r"(?s)No token left.*torch\.compile or a CUDA graph"):
        last_logits(model)


def test_blocks_that_overlap_restore_what_was_asked_for_before():
    traced = []

    def backend(graph, _):
        traced.append(graph)
        return graph.forward

    doubled = torch.compile(lambda x: x * 2, backend=backend)
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with uncompiled():
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    with uncompiled():
        thread.start()
        assert entered.wait(60)
    doubled(torch.ones(2))
    assert traced == []  # the other thread is inside still
    leave.set()
    thread.join()
    doubled(torch.ones(2))
    assert len(traced) == 1
