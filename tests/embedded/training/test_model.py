import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vtw_demo.embedded.training.model import SOURCE_LAYERS, narrowed, start_decoder, start_from


def llama(tokenizer, layers: int, intermediate: int) -> LlamaForCausalLM:
    torch.manual_seed(layers)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=2,
            tie_word_embeddings=True,
        )
    )


def test_a_narrowed_layer_is_the_whole_one_where_the_units_left_out_write_nothing():
    layer = llama_layer(torch.Generator().manual_seed(0))
    layer["mlp.down_proj.weight"][:, ::2] = 0
    narrow = narrowed(layer, 8)
    x = torch.randn(5, 12)
    torch.testing.assert_close(mlp(narrow, x), mlp(layer, x))
    assert torch.equal(narrow["self_attn.q_proj.weight"], layer["self_attn.q_proj.weight"])


def llama_layer(generator: torch.Generator) -> dict[str, torch.Tensor]:
    shapes = {
        "mlp.gate_proj": (16, 12),
        "mlp.up_proj": (16, 12),
        "mlp.down_proj": (12, 16),
        "self_attn.q_proj": (12, 12),
    }
    return {f"{name}.weight": torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def mlp(layer: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    gate, up = (x @ layer[f"mlp.{name}_proj.weight"].T for name in ("gate", "up"))
    return (torch.nn.functional.silu(gate) * up) @ layer["mlp.down_proj.weight"].T


def test_the_decoder_starts_with_the_sources_layers_and_words(tokenizer):
    source, decoder = llama(tokenizer, max(SOURCE_LAYERS) + 1, 96), llama(tokenizer, len(SOURCE_LAYERS), 96).model
    start_decoder(decoder, source, tokenizer, tokenizer)
    for layer, number in zip(decoder.layers, SOURCE_LAYERS, strict=True):
        for name, weight in layer.state_dict().items():
            assert torch.equal(weight, source.model.layers[number].state_dict()[name])
    assert torch.equal(decoder.embed_tokens.weight, source.get_input_embeddings().weight)


def test_a_deeper_tower_starts_from_a_shallower_one_with_the_same_output(tiny_model):
    earlier, model = tiny_model(seed=1, tower_layers=1), tiny_model(seed=2, tower_layers=2)
    shown = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    start_from(model, earlier)
    with torch.no_grad():
        ours, theirs = (m.eval().model.vision_tower(shown).last_hidden_state for m in (model, earlier))
    torch.testing.assert_close(ours, theirs)
