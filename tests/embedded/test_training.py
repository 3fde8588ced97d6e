"""Training goes on where it was stopped, as if it had not been, and touches nothing that it is to leave alone."""

import pytest
import torch
import torch.distributed
from transformers import PreTrainedTokenizerFast

from vtw_demo.embedded import training
from vtw_demo.embedded.architecture import TRAINED_LAYERS, build_model, build_processor
from vtw_demo.embedded.codes import codebook
from vtw_demo.models.loading import EMBEDDED_FOLDER


@pytest.fixture(scope="module")
def tokenizer():
    return PreTrainedTokenizerFast.from_pretrained(EMBEDDED_FOLDER)


@pytest.fixture(autouse=True)
def alone(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def interrupted(monkeypatch):
    """Makes the named function of training fail at its third call, as a machine does that is shut down."""

    def interrupt(name: str) -> None:
        calls, real = [], getattr(training, name)

        def failing(*arguments):
            calls.append(name)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return real(*arguments)

        monkeypatch.setattr(training, name, failing)

    return interrupt


def options(part, runs):
    return training.parse([part, "--runs", str(runs), "--steps", "3", "--cooldown", "2", "--batch", "2", "--turns", "3",
                           "--length", "320", "--save-every", "1", "--device", "cpu", "--out", str(runs / "out"),
                           *(["--start-from", str(EMBEDDED_FOLDER)] if part == "answers" else [])])  # fmt: skip


def trained(part, tokenizer, runs):
    """The weights after the part's training, or after what is left of it; and those before."""
    runs.mkdir(exist_ok=True)
    model, asked = build_model(tokenizer, 0), options(part, runs)
    for kept in training.kept_as_they_were(model.model.language_model):
        kept.requires_grad_(False)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    book = codebook(model.config.text_config.hidden_size)
    if part == "tower":
        training.train_tower(model, book, asked)
    elif part == "decoder":
        training.train_decoder(model, build_processor(tokenizer), book, asked)
    else:
        training.train_answers(model, build_processor(tokenizer), book, asked)
    return model.state_dict(), before


@pytest.mark.parametrize(
    ("part", "called"), [("tower", "code_loss"), ("decoder", "answer_loss"), ("answers", "answer_loss")]
)
def test_a_run_that_was_stopped_ends_with_the_same_weights(part, called, tokenizer, tmp_path, interrupted, monkeypatch):
    whole, _ = trained(part, tokenizer, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(training, called, getattr(training, called))
        interrupted(called)
        with pytest.raises(KeyboardInterrupt):
            trained(part, tokenizer, tmp_path / "stopped")
    assert torch.load(tmp_path / "stopped" / f"{part}.pt", weights_only=True)
    monkeypatch.undo()
    resumed, _ = trained(part, tokenizer, tmp_path / "stopped")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_decoders_upper_layers_and_words_stay_as_they_were(tokenizer, tmp_path):
    after, before = trained("decoder", tokenizer, tmp_path / "runs")
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed
    for name in changed:
        assert name.startswith("model.language_model.layers."), name
        assert int(name.split(".")[3]) < TRAINED_LAYERS


def test_a_deeper_tower_starts_from_a_shallower_one_with_the_same_output(tokenizer):
    earlier, model = build_model(tokenizer, 1), build_model(tokenizer, 2)
    shown = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    tower = earlier.model.vision_tower.encoder
    tower.layers = tower.layers[:4]
    training.start_from(model, earlier)
    with torch.no_grad():
        ours, theirs = (m.eval().model.vision_tower(shown).last_hidden_state for m in (model, earlier))
    torch.testing.assert_close(ours, theirs)
