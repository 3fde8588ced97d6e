"""The command, part by part: each starts from the one before, and goes on where it was stopped."""

import pytest
import torch

from tests.embedded.training.conftest import LAYERS
from vtw_demo.embedded.training import parts
from vtw_demo.embedded.training.command import PARTS, main, parse
from vtw_demo.embedded.training.model import load
from vtw_demo.errors import UserError

pytestmark = pytest.mark.usefixtures("small_parts")
KEPT = (0, 2)


def train(part, runs, steps=3, fine=1):
    main([part, "--runs", str(runs), "--steps", str(steps), "--cooldown", "2", "--fine-steps", str(fine),
          "--batch", "2", "--save-every", "0", "--device", "cpu", "--no-compile",
          "--layers", *map(str, KEPT)])  # fmt: skip
    return torch.load(runs / f"{part}.pt", weights_only=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return {"runs": tmp_path_factory.mktemp("trained")}


@pytest.fixture
def whole(trained):
    """The folder of a training that was never stopped, and each part's last checkpoint."""
    for part in PARTS:
        if part not in trained:
            trained[part] = train(part, trained["runs"])
    return trained


def test_each_part_has_its_own_schedule_unless_told_otherwise():
    kept = parse(["kept", "--layers", "1"])
    assert (parse(["tower"]).rate, parse(["whole"]).cooldown) == (1e-3, 50)
    assert (kept.fine_steps, kept.stored_steps) == (750, 300)
    assert (parse(["tower", "--steps", "7"]).steps, parse(["tower", "--steps", "7"]).cooldown) == (7, 3000)


@pytest.mark.parametrize("part", PARTS)
def test_a_run_that_was_stopped_ends_with_the_same_weights(part, whole, tmp_path, monkeypatch):
    for before in PARTS[: PARTS.index(part)]:
        (tmp_path / f"{before}.pt").symlink_to(whole["runs"] / f"{before}.pt")
    (tmp_path / "tokenizer").symlink_to(whole["runs"] / "tokenizer")
    name = "naming_loss" if part == "tower" else "answer_loss"
    calls, real = [], getattr(parts, name)

    def failing(*arguments):
        """Fails in the third step, as a machine does that is shut down."""
        calls.append(part)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(parts, name, failing)
        with pytest.raises(KeyboardInterrupt):
            train(part, tmp_path)
    assert torch.load(tmp_path / f"{part}.pt", weights_only=True)["step"] == 2
    found, expected = train(part, tmp_path), whole[part]
    assert found["step"] == expected["step"] == 3
    assert found["progress"] == expected["progress"]
    assert found["model"].keys() == expected["model"].keys()
    assert all(torch.equal(weight, found["model"][name]) for name, weight in expected["model"].items())


def changed(before, after):
    """The parts of the model whose weights are others after it."""
    same = (name for name in after if name.startswith("model.") and name in before)
    return {name.split(".")[1] for name in same if not torch.equal(before[name], after[name])}


def test_each_part_trains_what_it_is_to(whole):
    of = {part: whole[part]["model"] for part in PARTS}
    assert changed(of["tower"], of["whole"]) == {"language_model", "multi_modal_projector"}
    assert "vision_tower" in changed(of["whole"], of["kept"])


def test_every_layer_that_is_kept_goes_on_learning_from_where_it_was(whole, tmp_path):
    for part in ("tower", "whole"):
        (tmp_path / f"{part}.pt").symlink_to(whole["runs"] / f"{part}.pt")
    (tmp_path / "tokenizer").symlink_to(whole["runs"] / "tokenizer")
    started, first, learned = train("kept", tmp_path, steps=0), whole["tower"]["model"], whole["whole"]["model"]
    after, prefix = whole["kept"]["model"], "model.language_model.layers"
    assert started["layers"] == list(KEPT)
    assert not any(name.startswith(f"{prefix}.{len(KEPT)}.") for name in after)
    for position, number in enumerate(KEPT):
        names = [name for name in after if name.startswith(f"{prefix}.{position}.")]
        assert len(names) > 5
        for name in names:
            source = name.replace(f".{position}.", f".{number}.", 1)
            torch.testing.assert_close(started["model"][name], (first[source] + learned[source]) / 2)
            assert not torch.equal(started["model"][name], after[name])
    model, _, _ = load(whole["runs"], "kept")
    assert model.config.text_config.num_hidden_layers == len(KEPT) < LAYERS


def test_the_last_steps_see_all_visual_tokens(whole, tmp_path, monkeypatch):
    (tmp_path / "tower.pt").symlink_to(whole["runs"] / "tower.pt")
    (tmp_path / "tokenizer").symlink_to(whole["runs"] / "tokenizer")
    sides, real = [], parts.visual_tokens
    monkeypatch.setattr(parts, "visual_tokens", lambda *asked: sides.append(asked[-1]) or real(*asked))
    train("whole", tmp_path, steps=3, fine=1)
    assert sides == [7, 7, 14]


def test_a_part_without_the_one_before_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"tower\.pt is not there: train the part tower first"):
        train("whole", tmp_path)


def test_which_layers_are_kept_must_be_said(capsys):
    with pytest.raises(SystemExit):
        parse(["kept"])
    assert "which layers are kept?" in capsys.readouterr().err
