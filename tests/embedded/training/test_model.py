import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.embedded.training.conftest import LAYERS
from vtw_demo.embedded.training import model as model_module
from vtw_demo.embedded.training.model import keep_layers, start, take_tower


def llama(tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=LAYERS,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=True,
        )
    )


def test_the_decoder_starts_with_the_sources_layers_and_words(tokenizer, tiny_model, tmp_path, monkeypatch):
    source = llama(tokenizer)
    monkeypatch.setattr(model_module, "fetch_source", lambda folder: folder)
    monkeypatch.setattr(model_module, "build_tokenizer", lambda source: source)
    monkeypatch.setattr(model_module, "build_model", lambda tokenizer, seed: tiny_model(seed))
    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", lambda *_, **__: source)
    monkeypatch.setattr(PreTrainedTokenizerFast, "from_pretrained", lambda *_, **__: tokenizer)
    model, _ = start(tmp_path, 0)
    decoder = model.model.language_model.state_dict()
    assert all(torch.equal(decoder[name], weight) for name, weight in source.model.state_dict().items())
    assert (tmp_path / "tokenizer" / "tokenizer.json").exists()


def test_kept_layers_compute_what_they_did(tiny_model):
    model = tiny_model().eval()
    decoder, words = model.model.language_model, torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        idle = decoder.layers[1]
        for linear in (idle.self_attn.o_proj, idle.mlp.down_proj):
            linear.weight.zero_()
        whole = decoder(inputs_embeds=words).last_hidden_state
        keep_layers(model, [0, 2])
        without = decoder(inputs_embeds=words, use_cache=True)
    torch.testing.assert_close(without.last_hidden_state, whole)
    assert without.past_key_values.get_seq_length(1) == 5
    assert model.config.text_config.num_hidden_layers == 2


def test_tower_and_projector_are_taken_from_a_saved_model(tiny_model, tmp_path):
    earlier, model = tiny_model(seed=1), tiny_model(seed=2)
    earlier.save_pretrained(tmp_path)
    decoder = {name: weight.clone() for name, weight in model.model.language_model.state_dict().items()}
    take_tower(model, tmp_path)
    for name in ("vision_tower", "multi_modal_projector"):
        expected = earlier.model.get_submodule(name).state_dict()
        assert all(torch.equal(w, expected[key]) for key, w in model.model.get_submodule(name).state_dict().items())
    assert all(torch.equal(w, decoder[key]) for key, w in model.model.language_model.state_dict().items())
