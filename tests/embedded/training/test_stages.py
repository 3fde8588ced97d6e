"""Training goes on where it was stopped, as if it had not been, and touches nothing that it is to leave alone."""

import shutil

import pytest
import torch
import torch.distributed

from vtw_demo.embedded.training import stages
from vtw_demo.embedded.training.codes import codebook
from vtw_demo.embedded.training.command import parse
from vtw_demo.embedded.training.model import TRAINED_LAYERS, freeze
from vtw_demo.embedded.training.stages import PARTS


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory):
    rendezvous = tmp_path_factory.mktemp("group") / "rendezvous"
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def train(tiny_model, processor):
    """Trains a part, or what is left of it, and returns the weights before and after."""

    def run(part, runs, steps=3):
        options = parse([part, "--runs", str(runs), "--steps", str(steps), "--cooldown", "2", "--batch", "2",
                         "--turns", "3", "--length", "320", "--save-every", "1", "--device", "cpu",
                         "--out", str(runs / "out")])  # fmt: skip
        model = tiny_model()
        freeze(model.model.language_model)
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        book = codebook(model.config.text_config.hidden_size)
        PARTS[part](model, processor, book, options)
        return before, model.state_dict()

    return run


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """The folder of a run that was never stopped, and each part's weights before and after it."""
    runs = tmp_path_factory.mktemp("whole")
    return runs, {part: train(part, runs) for part in PARTS}


def checkpoint(runs, part):
    return torch.load(runs / f"{part}.pt", weights_only=True)


@pytest.mark.parametrize("part", PARTS)
def test_a_run_that_was_stopped_ends_with_the_same_weights(part, train, whole, tmp_path, monkeypatch):
    runs, weights = whole
    if part == "answers":
        shutil.copy(runs / "tower.pt", tmp_path)
        shutil.copy(runs / "decoder.pt", tmp_path)
    loss = "code_loss" if part == "tower" else "answer_loss"
    calls, real = [], getattr(stages, loss)

    def failing(*arguments):
        """Fails in the third step, as a machine does that is shut down."""
        calls.append(part)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(stages, loss, failing)
        with pytest.raises(KeyboardInterrupt):
            train(part, tmp_path)
    assert checkpoint(tmp_path, part)["step"] == 2
    _, resumed = train(part, tmp_path)
    _, after = weights[part]
    assert after.keys() == resumed.keys()
    assert all(torch.equal(after[name], resumed[name]) for name in after)
    expected, found = checkpoint(runs, part), checkpoint(tmp_path, part)
    assert expected["progress"] == found["progress"]
    assert expected["step"] == found["step"] == 3
    assert all(torch.equal(weight, found["model"][name]) for name, weight in expected["model"].items())


def test_the_decoders_upper_layers_and_words_stay_as_they_were(whole):
    for part in ("decoder", "answers"):
        before, after = whole[1][part]
        language = {name for name in after if name.startswith("model.language_model.")}
        changed = {name for name in language if not torch.equal(after[name], before[name].to(after[name].dtype))}
        assert changed
        assert {name.split(".")[2] for name in changed} == {"layers"}
        assert {int(name.split(".")[3]) for name in changed} == set(range(TRAINED_LAYERS))


def test_answering_starts_from_what_tower_and_decoder_have_learned(train, whole, tmp_path):
    for part in ("tower", "decoder"):
        shutil.copy(whole[0] / f"{part}.pt", tmp_path)
    _, started = train("answers", tmp_path, steps=0)
    for part, learned in (("tower", "vision_tower"), ("decoder", "language_model"), ("tower", "multi_modal_projector")):
        _, after = whole[1][part]
        names = [name for name in after if name.startswith(f"model.{learned}.")]
        assert names
        assert all(torch.equal(started[name], after[name].bfloat16()) for name in names)
