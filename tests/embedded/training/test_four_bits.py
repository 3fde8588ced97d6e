import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from PIL import Image

from tests.embedded.training.conftest import LAYERS
from vtw_demo import load
from vtw_demo.embedded.training.command import main
from vtw_demo.embedded.training.four_bits import nearest_in_four_bits, seen_in_four_bits
from vtw_demo.embedded.training.model import load as load_part


def test_a_weight_is_what_bitsandbytes_makes_of_it():
    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(0))
    weight[0, :64] = 0
    assert torch.equal(nearest_in_four_bits(weight), dequantize_4bit(*quantize_4bit(weight, quant_type="nf4")))


def test_the_layers_compute_in_four_bits_and_the_weights_learn_from_that(tiny_model):
    model, stored = tiny_model(), tiny_model()
    decoder, expected = model.model.language_model, stored.model.language_model
    for module in expected.layers.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = nearest_in_four_bits(module.weight.data)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    words = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(0))
    with seen_in_four_bits(model):
        found = decoder(inputs_embeds=words).last_hidden_state
        found.square().sum().backward()
    exact = expected(inputs_embeds=words).last_hidden_state
    exact.square().sum().backward()
    torch.testing.assert_close(found, exact)
    for weight, reference in zip(decoder.layers.parameters(), expected.layers.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, reference.grad)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_the_weights_are_back_after_an_error(tiny_model):
    model = tiny_model()
    before = model.model.language_model.layers[0].mlp.up_proj.weight.clone()
    with pytest.raises(ZeroDivisionError), seen_in_four_bits(model):
        raise ZeroDivisionError
    assert torch.equal(model.model.language_model.layers[0].mlp.up_proj.weight, before)


@pytest.mark.usefixtures("small_parts")
def test_the_decoder_is_stored_in_four_bits_and_the_rest_in_sixteen(tmp_path):
    main(["tower", "--runs", str(tmp_path), "--device", "cpu", "--no-compile", "--steps", "0"])
    main(["store", "--runs", str(tmp_path), "--device", "cpu", "--of", "tower", "--out", str(tmp_path / "out")])
    stored = load(str(tmp_path / "out"), device="cpu")
    assert stored.precision == "4-bit"
    assert len(stored.quantized_modules) == 7 * LAYERS
    trained, _, _ = load_part(tmp_path, "tower")
    for name in ("model.vision_tower", "model.multi_modal_projector", "model.language_model.embed_tokens"):
        for key, weight in trained.get_submodule(name).state_dict().items():
            kept = stored.model.get_submodule(name).state_dict()[key]
            assert torch.equal(kept.float(), weight.bfloat16().float())
    inputs = stored.prepare(Image.new("RGB", (8, 8)), "What is it?")
    with torch.no_grad():
        # Four bits are near the weights, and no more.
        found, exact = stored.model(**inputs).logits, trained.eval()(**inputs).logits
    assert torch.nn.functional.cosine_similarity(found[0, -1], exact[0, -1], dim=0) > 0.9
