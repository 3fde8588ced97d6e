"""A layer that the prefill chooses, against withdrawal at just that layer; and what it is chosen by, against full eager
attention."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.families import BRANCHES, FAMILIES, LAYERS
from tests.grids import nightly_but
from tests.oracles import attention_implementation, keys_blocked
from tests.recipes import check_same
from tests.tiny_models import OPTIONS, PROMPTS, TinyModel, build, prompts_of
from vtw_demo import measure_attention, withdraw
from vtw_demo.withdrawal import automatic_layer
from vtw_demo.withdrawal.attention_capture import attention_rows, output_cosine
from vtw_demo.withdrawal.segments import visual_token_mask

EVER, NEVER = -1.0, 2.0


def check(tiny: TinyModel, inputs: dict[str, torch.Tensor], threshold: float, **options) -> int:
    """Generate at the layer that is chosen, and at the same one by its number; that layer comes."""
    with withdraw(tiny.model, "auto", threshold=threshold) as withdrawal:
        out = tiny.model.generate(**inputs, **OPTIONS | options)
    with withdraw(tiny.model, withdrawal.layer):
        expected = tiny.model.generate(**inputs, **OPTIONS | options)
    check_same(out, expected)
    return withdrawal.layer


@pytest.mark.parametrize(
    ("family", "threshold"), nightly_but([("llava", EVER)], itertools.product(FAMILIES, (EVER, NEVER)))
)
def test_it_equals_withdrawal_at_the_layer_chosen(family, threshold):
    tiny = build(family)
    for kind in prompts_of(family):
        inputs = tiny.prompt(*PROMPTS[kind])
        layer = check(tiny, inputs, threshold)
        if threshold == NEVER or kind == "no image":
            assert layer == LAYERS
        else:
            assert 2 <= layer <= LAYERS


WAYS = {"beams": {"num_beams": 2}, "static cache": {"cache_implementation": "static"}, "no cache": {"use_cache": False}}


@pytest.mark.parametrize(
    ("family", "way"),
    nightly_but(
        [("llava", way) for way in WAYS],
        # transformers' own llama4 can't search with beams (`TRANSFORMERS_CANNOT` in test_families.py).
        [case for case in itertools.product(BRANCHES, WAYS) if case != ("llama4", "beams")],
    ),
)
def test_ways_of_generating(family, way):
    tiny = build(family)
    layer = check(tiny, tiny.prompt(*PROMPTS["ragged batch"]), EVER, **WAYS[way])
    # Where few layers attend, none is left after two of them.
    assert layer == 2 if family == "llava" else 2 <= layer <= LAYERS


def cosines(tiny: TinyModel, inputs: dict[str, torch.Tensor]) -> list[list[float]]:
    """By row and layer: the mean over the question, from eager attention over everything."""
    visual = visual_token_mask(tiny.model.config, inputs["input_ids"])
    values: dict[int, torch.Tensor] = {}
    layers = tiny.model.get_decoder().layers
    handles = [
        layer.self_attn.v_proj.register_forward_hook(lambda _, __, out, index=index: values.update({index: out}))
        for index, layer in enumerate(layers)
    ]
    with torch.no_grad(), keys_blocked(tiny.model, {}) as matrices:
        tiny.model(**inputs)
    for handle in handles:
        handle.remove()
    found = []
    for row, is_visual in enumerate(visual):
        present = inputs["attention_mask"][row].bool()
        after = int(is_visual.nonzero().max()) + 1 if is_visual.any() else 0
        question = [position for position in range(after, len(present)) if present[position]][-16:]
        of_layers = []
        for index in range(LAYERS):
            value = values[index][row].view(len(present), -1, 8).repeat_interleave(2, dim=1)
            parts = []
            for position in question:
                weights = matrices[index][row, :, position]
                without = weights * ~is_visual
                without = without / without.sum(-1, keepdim=True)
                outputs = [torch.einsum("hk,khd->hd", each, value).flatten() for each in (weights, without)]
                parts.append(torch.cosine_similarity(*outputs, dim=0))
            of_layers.append(torch.stack(parts).mean().item())
        found.append(of_layers)
    return found


@pytest.mark.parametrize("kind", ["one image", "several images", "ragged batch"])
def test_the_layer_follows_from_full_attention(kind):
    """Between all its cosines, the layer is the first after two above the threshold, in a batch the last of its
    rows."""
    tiny = build("llava")
    inputs = tiny.prompt(*PROMPTS[kind])
    of_rows = cosines(tiny, inputs)
    known = sorted({cosine for row in of_rows for cosine in row})
    chosen = set()
    between = [(low + high) / 2 for low, high in itertools.pairwise(known) if high - low > 1e-4]
    for threshold in (known[0] - 0.01, *between):
        with torch.no_grad(), withdraw(tiny.model, "auto", threshold=threshold) as withdrawal:
            tiny.model(**inputs)
        expected = max(
            next((k for k in range(2, LAYERS) if min(row[k - 2 : k]) > threshold), LAYERS) for row in of_rows
        )
        assert withdrawal.layer == expected
        chosen.add(expected)
    assert len(chosen) > 1


def test_cosines_equal_those_of_full_attention():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 9, 8, generator=generator) for heads in (6, 3, 3))
    visual = torch.zeros(2, 9, dtype=torch.bool)
    visual[0, 1:5], visual[1, 2:7] = True, True
    causal = torch.ones(9, 9, dtype=torch.bool).tril()
    outputs = []
    for allowed in (causal.expand(2, 1, 9, 9), causal & ~visual[:, None, None]):
        scores = query @ key.repeat_interleave(2, 1).transpose(2, 3) / 8**0.5
        weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
        outputs.append((weights @ value.repeat_interleave(2, 1)).transpose(1, 2).flatten(2)[:, -2:])
    (rows,) = attention_rows(query, key, None, 2)
    expected = torch.cosine_similarity(*outputs, dim=-1)
    torch.testing.assert_close(output_cosine(rows, value, visual), expected, atol=1e-5, rtol=0)


def test_each_prefill_and_each_cache_has_its_layer():
    tiny = build("llava")
    inputs, text = tiny.prompt(*PROMPTS["one image"]), tiny.prompt([1, 2, 3])
    with torch.no_grad(), withdraw(tiny.model, "auto", threshold=EVER) as withdrawal:
        assert withdrawal.layer is None
        cache = tiny.model(**inputs).past_key_values
        assert withdrawal.layer == 2
        tiny.model(**text)
        assert withdrawal.layer == LAYERS
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(lambda: withdrawal.layer).result() is None
        length = inputs["input_ids"].shape[1]
        assert [layer.keys.shape[-2] for layer in cache.layers] == [length] * 2 + [length - tiny.counts["image"]] * 2
        further = {**inputs, "attention_mask": torch.ones(1, 2 * length)}
        logits = tiny.model(**further, past_key_values=cache).logits  # the same picture again
        assert withdrawal.layer == 2
    with torch.no_grad(), withdraw(tiny.model, 2):
        cache = tiny.model(**inputs).past_key_values
        torch.testing.assert_close(logits, tiny.model(**further, past_key_values=cache).logits)
    with torch.no_grad(), withdraw(tiny.model, "auto", threshold=NEVER) as withdrawal:
        cache = tiny.model(**inputs).past_key_values
        with pytest.raises(ValueError, match=f"holds {length} tokens already"):
            tiny.model(**further, past_key_values=cache)
    with torch.no_grad(), withdraw(tiny.model, 1):
        cache = tiny.model(**inputs).past_key_values
    with (
        torch.no_grad(),
        withdraw(tiny.model, "auto"),
        pytest.raises(RuntimeError, match="filled with withdrawal layer 1"),
    ):
        tiny.model(**further, past_key_values=cache)


def test_threads_choose_as_alone():
    tiny = build("llava")
    queries = [tiny.prompt(*PROMPTS[kind]) for kind in ("one image", "several images", "no image", "ragged batch")]
    known = sorted(cosine for row in cosines(tiny, queries[1]) for cosine in row)

    def ask(inputs):
        return tiny.model.generate(**inputs, **OPTIONS).sequences.tolist(), withdrawal.layer

    with withdraw(tiny.model, "auto", threshold=known[1]) as withdrawal, ThreadPoolExecutor(4) as threads:
        alone = [ask(inputs) for inputs in queries]
        for _ in range(5):
            assert [*threads.map(ask, queries)] == alone


def test_it_refuses():
    tiny = build("llava")
    inputs = tiny.prompt(*PROMPTS["one image"])
    with pytest.raises(TypeError, match="an integer, or \"auto\"; this is 'Auto'"), withdraw(tiny.model, "Auto"):
        pass
    with pytest.raises(ValueError, match="A threshold goes with"), withdraw(tiny.model, 2, threshold=0.9):
        pass
    nan = float("nan")
    with pytest.raises(ValueError, match="this is nan"), withdraw(tiny.model, "auto", threshold=nan):
        pass
    with (
        attention_implementation(tiny.model, "another", lambda: None, lambda: None),
        pytest.raises(ValueError, match="that of LlavaForConditionalGeneration is another"),
        withdraw(tiny.model, "auto"),
    ):
        pass
    with torch.no_grad(), withdraw(tiny.model, "auto", threshold=NEVER):
        with pytest.raises(ValueError, match="ends with a visual token"):
            tiny.model(**tiny.prompt([1, 2, "image"]))
        with pytest.raises(RuntimeError, match="active"), withdraw(tiny.model, "auto"):
            pass
        tiny.model(**inputs)
    with (
        withdraw(tiny.model, "auto", threshold=-1),
        pytest.raises(RuntimeError, match="isn't known which of them are visual tokens"),
    ):
        measure_attention(tiny.model, inputs)
    assert tiny.model.get_decoder().config._attn_implementation == "sdpa"


def test_attention_that_cant_be_captured_is_told():
    tiny = build("llava")
    with (
        patch.object(automatic_layer, "captured_rows", lambda *_: torch.no_grad()),
        withdraw(tiny.model, "auto"),
        pytest.raises(RuntimeError, match="decoder layer 0 of this LlavaForConditionalGeneration doesn't run through"),
    ):
        tiny.model(**tiny.prompt(*PROMPTS["one image"]))


@pytest.mark.parametrize(
    ("visual", "hidden", "heads", "mlp"), [(576, 4096, 32, 11008), (576, 1024, 16, 2816), (196, 576, 9, 1536)]
)
def test_it_costs_less_than_half_a_percent(visual, hidden, heads, mlp):
    """Of a layer's FLOPs in a prefill with 60 tokens of text: of LLaVA-1.5-7B's, of the benchmark's, of the embedded
    model's width."""
    tokens = visual + 60
    query, key, value = (torch.zeros(1, heads, tokens, hidden // heads) for _ in range(3))
    is_visual = torch.zeros(1, tokens, dtype=torch.bool)
    is_visual[:, 30:-30] = True
    with FlopCounterMode(display=False) as counted:
        (rows,) = attention_rows(query, key, None, automatic_layer.QUESTION_POSITIONS)
        output_cosine(rows, value, is_visual)
    of_layer = 2 * tokens * (4 * hidden**2 + 3 * hidden * mlp) + 4 * tokens**2 * hidden
    assert 0 < counted.get_total_flops() < 0.005 * of_layer
