from types import SimpleNamespace

import pytest
import torch

from tests.embedded.training.conftest import LAYERS
from vtw_demo.embedded.training import search
from vtw_demo.embedded.training.command import main
from vtw_demo.embedded.training.search import attention_shares, cost, fresh_batches, leave_out


@pytest.fixture
def model(tiny_model):
    return tiny_model().eval()


@pytest.fixture
def batches(model, processor):
    with torch.no_grad():
        return fresh_batches(model, processor, 3, SimpleNamespace(batch=2, batches=2))


def test_the_layer_that_costs_least_is_left_out_first_and_none_above(model, monkeypatch):
    costs = dict(zip(model.model.language_model.layers, (2.0, 1.0, 0.0), strict=True))

    def cost_of_missing(model, batches):
        missing = set(costs) - set(model.model.language_model.layers)
        return sum(costs[layer] for layer in missing), 0.5

    monkeypatch.setattr(search, "cost", cost_of_missing)
    steps = leave_out(model, [], below=2, count=1)
    assert steps == [(1, 1.0, 0.5, [0, 2]), (0, 3.0, 0.5, [2])]
    assert len(leave_out(model, [], below=0, count=1)) == 0


@torch.no_grad()
def test_the_loss_is_that_of_all_answers(model, batches):
    loss, right = cost(model, batches)
    alone = [cost(model, [batch]) for batch in batches]
    assert loss == pytest.approx(sum(of[0] for of in alone) / len(alone))
    assert 0 <= right <= 1


@torch.no_grad()
def test_shares_of_attention_are_those_at_the_last_position_of_each_prompt(model, batches):
    samples, _ = batches[0]
    shares = attention_shares(model, batches[0])
    assert len(shares) == LAYERS
    assert all(0 < first < 1 and 0 < picture < 1 and first + picture < 1 for first, picture in shares)
    # Without position or content every key has the same share.
    for layer in model.model.language_model.layers:
        layer.self_attn.q_proj.weight.zero_()
    seen = [int(samples.attention_mask()[row, 0, position].sum()) for row, position in samples.ends]
    expected = sum(1 / keys for keys in seen) / len(seen)
    for first, picture in attention_shares(model, batches[0]):
        assert first == pytest.approx(expected, rel=1e-3)
        assert picture == pytest.approx(49 * expected, rel=1e-3)


@pytest.mark.usefixtures("small_parts")
def test_the_command_prints_where_the_model_looks_and_what_leaving_out_costs(tmp_path, capsys):
    common = ["--runs", str(tmp_path), "--device", "cpu", "--no-compile", "--batch", "2"]
    for part in ("tower", "whole"):
        main([part, *common, "--steps", "0"])
    main(["search", *common, "--count", "2", "--batches", "1"])
    said = capsys.readouterr().out
    assert all(f"layer {number}: on the first token 0." in said for number in range(LAYERS))
    assert "left out are layers below 1" in said
    assert "2 layers, without 0: loss" in said
    assert said.rstrip().endswith("kept [1, 2]")
