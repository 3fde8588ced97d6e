import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from vtw_demo.embedded.training.codes import CODES
from vtw_demo.embedded.training.model import TRAINED_LAYERS, build_processor
from vtw_demo.models.loading import EMBEDDED_FOLDER


@pytest.fixture(scope="session")
def tokenizer():
    return PreTrainedTokenizerFast.from_pretrained(EMBEDDED_FOLDER)


@pytest.fixture(scope="session")
def processor(tokenizer):
    return build_processor(tokenizer)


@pytest.fixture(scope="session")
def tiny_model():
    """Makes a random model as small as the training allows: its width has room for the codes, a layer stays frozen."""

    def make(seed: int = 0, tower_layers: int = 1) -> LlavaForConditionalGeneration:
        config = LlavaConfig.from_pretrained(EMBEDDED_FOLDER, dtype="float32")
        tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": tower_layers}
        decoder = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": TRAINED_LAYERS + 1, "head_dim": 32}
        assert decoder["hidden_size"] >= CODES
        config.vision_config.update({**tower, "num_attention_heads": 1})
        config.text_config.update({**decoder, "num_attention_heads": 2, "num_key_value_heads": 1})
        torch.manual_seed(seed)
        return LlavaForConditionalGeneration(config).float()

    return make
