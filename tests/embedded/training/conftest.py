import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from vtw_demo.embedded.training.model import build_processor
from vtw_demo.models.loading import EMBEDDED_FOLDER

LAYERS = 3


@pytest.fixture(scope="session")
def tokenizer():
    return PreTrainedTokenizerFast.from_pretrained(EMBEDDED_FOLDER)


@pytest.fixture(scope="session")
def processor(tokenizer):
    return build_processor(tokenizer)


@pytest.fixture(scope="session")
def tiny_model():
    """Makes a random model as small as the training allows."""

    def make(seed: int = 0) -> LlavaForConditionalGeneration:
        config = LlavaConfig.from_pretrained(EMBEDDED_FOLDER, dtype="float32")
        vars(config).pop("quantization_config", None)
        config.vision_config.update(
            {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
        )
        decoder = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": LAYERS, "head_dim": 32}
        config.text_config.update({**decoder, "num_attention_heads": 2, "num_key_value_heads": 1})
        torch.manual_seed(seed)
        return LlavaForConditionalGeneration(config).float()

    return make


@pytest.fixture
def small_parts(monkeypatch, tiny_model, tokenizer):
    """Every part is trained on the tiny model, as if it were what the sources make."""
    from vtw_demo.embedded.training import command, model

    def start(runs, seed):
        tokenizer.save_pretrained(runs / model.TOKENIZER_FOLDER)
        return tiny_model(seed), model.build_processor(tokenizer)

    monkeypatch.setattr(command, "start", start)
    monkeypatch.setattr(model, "build_model", lambda tokenizer, seed: tiny_model(seed))
