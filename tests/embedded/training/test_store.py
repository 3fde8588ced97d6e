import pytest
import torch
from PIL import Image

from tests.embedded.training.conftest import LAYERS
from vtw_demo import load
from vtw_demo.embedded.training.command import main
from vtw_demo.embedded.training.model import load as load_part


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
