"""Arguments of decoder layers that nobody has told of: taken apart like the others where that is safe, else refused."""

import copy

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from tests.oracles import visual_keys_blocked
from tests.tiny_models import build
from vtw_demo.withdrawal.architectures import find_decoder
from vtw_demo.withdrawal.withdraw import withdraw

TINY = build("llava")
ROWS = {
    "a row": TINY.prompt([1, 2, 3, "image", 4, 5, 6]),
    "ragged rows": TINY.prompt([1, 2, 3, "image", 4, 5, 6], [7, "image", 8, "image", 9]),
}
IMAGE = TINY.model.config.image_token_id


class Scaling(nn.Module):
    """A decoder layer whose output is scaled, position by position, by a further argument, as new decoders bring."""

    def __init__(self, layer, take):
        super().__init__()
        self.layer, self.take = layer, take
        self.self_attn = layer.self_attn

    def forward(self, hidden_states, **kwargs):
        further = self.take(kwargs.pop("further"))
        return self.layer(hidden_states, **kwargs) * (1 + further)


def scaled(make, take=lambda further: further):
    """A model whose layers are handed `further`, which `make` makes of an entry (batch, sequence, 1) for each token."""
    model = copy.deepcopy(TINY.model)
    decoder = find_decoder(model)
    for index, layer in enumerate(decoder.layers):
        decoder.layers[index] = Scaling(layer, take)

    def hand_over(module, args, kwargs):
        states = kwargs["inputs_embeds"]
        kwargs["further"] = make(states.mean(-1, keepdim=True))
        return args, kwargs

    decoder.register_forward_pre_hook(hand_over, with_kwargs=True)
    return model


SAFE = {
    "tensor": (lambda each: each, lambda further: further),
    "of all rows": (lambda each: each[:1], lambda further: further),
    "without a last axis": (lambda each: each[..., 0], lambda further: further[..., None]),
    "heads first": (lambda each: torch.stack([each, each]), lambda further: further[1]),
    "tuple": (lambda each: (each, 2 * each), lambda further: further[0] + further[1]),
    "list": (lambda each: [each], lambda further: further[0]),
    "dict": (lambda each: {"scale": each}, lambda further: further["scale"]),
    "nested": (lambda each: {"scales": [(each, None)]}, lambda further: further["scales"][0][0]),
    "of no token": (lambda each: each.mean(), lambda further: further),
    "number": (lambda each: 0.5, lambda further: further),
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kind", SAFE)
def test_what_has_an_entry_for_each_token_goes_with_it(kind, rows):
    model, inputs = scaled(*SAFE[kind]), ROWS[rows]
    options = {"use_cache": False}
    with torch.no_grad():
        with visual_keys_blocked(model, 2, inputs["input_ids"] == IMAGE):
            expected = model(**inputs, **options).logits[:, -1]
        with withdraw(model, 2):
            logits = model(**inputs, **options).logits[:, -1]
        assert not torch.allclose(logits, model(**inputs, **options).logits[:, -1], atol=1e-3)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


UNSAFE = {
    "a square": lambda each: (each @ each.mT)[:, None],
    "tokens first": lambda each: each.transpose(0, 1)[..., None] if len(each) > 1 else each[0],
    "in a list": lambda each: [(each @ each.mT)],
    "in a dict": lambda each: {"bias": (each @ each.mT)},
}


@pytest.mark.parametrize("kind", UNSAFE)
def test_what_could_be_anything_is_refused(kind):
    model = scaled(UNSAFE[kind], lambda further: 0)
    inputs = ROWS["ragged rows"]
    with withdraw(model, 2), pytest.raises(RuntimeError, match=r"doesn't understand the argument further of Scaling"):
        model(**inputs, use_cache=False)


@pytest.mark.parametrize("name", ["prev_topk_indices", "key_index"])
def test_places_of_keys_are_refused(name):
    from vtw_demo.withdrawal.layer_inputs import sequence_dim

    with pytest.raises(RuntimeError, match=f"the argument {name} of Linear"):
        sequence_dim(name, torch.zeros(1, 9, 4, dtype=torch.long), 1, 9, nn.Linear(1, 1))


class Renamed(nn.Module):
    """A module that is handed the KV cache under another name, as a later transformers may."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.self_attn = layer.self_attn

    def forward(self, hidden_states, memory=None, **kwargs):
        return self.layer(hidden_states, past_key_values=memory, **kwargs)


@pytest.mark.parametrize("positional", [False, True])
def test_the_cache_is_known_by_what_it_is(positional):
    model = copy.deepcopy(TINY.model)
    decoder = find_decoder(model)
    for index, layer in enumerate(decoder.layers):
        decoder.layers[index] = renamed = Renamed(layer)

        def rename(module, args, kwargs):
            known = next(name for name in ("past_key_values", "cache") if name in kwargs)
            kwargs["memory"] = kwargs.pop(known)
            if positional:
                args = (*args, kwargs.pop("memory"))
            return args, kwargs

        renamed.register_forward_pre_hook(rename, with_kwargs=True)
    inputs = ROWS["ragged rows"]
    options = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": [IMAGE]}
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        with visual_keys_blocked(model, 2, inputs["input_ids"] == IMAGE):
            expected = model.generate(**inputs, **options)
        with withdraw(model, 2):
            cache = DynamicCache()
            assert torch.equal(model.generate(**inputs, **options, past_key_values=cache), expected)
        assert [layer.keys.shape[-2] for layer in cache.layers][2] < cache.layers[0].keys.shape[-2]
