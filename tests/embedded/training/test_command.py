"""The command, with two processes, whose second call goes on where the first one ended."""

import subprocess
import sys

import pytest
import torch

from vtw_demo.embedded.training.codes import codebook
from vtw_demo.embedded.training.command import parse
from vtw_demo.embedded.training.model import build_model


def test_each_part_has_its_own_schedule_unless_told_otherwise():
    assert (parse(["tower"]).steps, parse(["decoder"]).cooldown, parse(["answers"]).rate) == (6000, 800, 0.005)
    assert (parse(["tower", "--steps", "7"]).steps, parse(["tower", "--steps", "7"]).cooldown) == (7, 3000)


@pytest.mark.nightly
def test_two_processes_train_and_go_on(tokenizer, tmp_path):
    decoder = build_model(tokenizer, 0).model.language_model
    torch.save({"decoder": decoder.state_dict(), "book": codebook(decoder.config.hidden_size)}, tmp_path / "start.pt")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    for steps in (2, 3):
        subprocess.run(
            [sys.executable, "-m", "vtw_demo.embedded.training", "tower", "--runs", tmp_path, "--steps", str(steps),
             "--batch", "2", "--processes", "2", "--save-every", "1", "--device", "cpu", "--no-compile"],
            check=True,
        )  # fmt: skip
        assert torch.load(tmp_path / "tower.pt", weights_only=True)["step"] == steps
