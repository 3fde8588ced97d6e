import pytest
import torch

from tests.tiny_models import build
from vtw_demo.measurements.attention import measure_attention, measure_attention_map
from vtw_demo.measurements.sinks import MASSIVE, watched_sinks

HIDDEN, PLANTED = 600, 37


def states(*massive):
    """Of ten tokens, those named with one activation of nearly all their length."""
    made = torch.randn(1, 10, HIDDEN, generator=torch.Generator().manual_seed(0))
    for token in massive:
        made[0, token, PLANTED] = 1000
    return made


class Decoder(torch.nn.Module):
    def __init__(self, *entering):
        super().__init__()
        self.layers, self.entering = torch.nn.ModuleList(torch.nn.Identity() for _ in entering), entering

    def get_decoder(self):
        return self

    def forward(self):
        for layer, entering in zip(self.layers, self.entering, strict=True):
            layer(entering)


def sinks_of(*entering):
    model = Decoder(*entering)
    with watched_sinks(model, 1, torch.arange(4, 8)) as found:
        model()
    assert not any(layer._forward_pre_hooks for layer in model.layers)
    return found[0]


def test_a_planted_massive_activation_is_found_where_it_is():
    sinks = sinks_of(states(), states(1), states(1, 5, 7, 9), states(5))
    assert sinks.dimensions == ((), (PLANTED,), (PLANTED,), ())
    # Token 9 is text; in the last layer the first token has none, so the dimension isn't known.
    assert sinks.visual == ((), (), (1, 3), ())
    assert (sinks.all_dimensions, sinks.all_visual) == ([PLANTED], [1, 3])
    assert sinks.largest == pytest.approx(HIDDEN**0.5, rel=0.01)


def test_another_dimension_is_no_sink_dimension():
    other = states(1)
    other[0, 6, PLANTED + 1] = 1000
    assert sinks_of(other).visual == ((),)


def test_where_there_is_none_the_largest_is_told():
    sinks = sinks_of(states(), states())
    assert not sinks.all_dimensions
    assert not sinks.all_visual
    assert 1 < sinks.largest < MASSIVE


def test_they_are_of_the_full_run_and_the_same_for_every_query():
    tiny = build("llava")
    inputs = tiny.prompt([1, "image", 2, 3])
    mass = measure_attention(tiny.model, inputs, [4, 5])
    assert len(mass.sinks.dimensions) == len(mass.sinks.visual) == mass.layers
    assert not mass.sinks.all_dimensions  # no vector of so few numbers can be massive
    assert measure_attention_map(tiny.model, inputs, [4, 5], 1).sinks == mass.sinks
    assert measure_attention(tiny.model, inputs, [4, 5], layer=2).sinks is None
