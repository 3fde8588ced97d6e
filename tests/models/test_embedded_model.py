from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

from vtw_demo import load
from vtw_demo.models import loading
from vtw_demo.models.loading import EMBEDDED_FOLDER


@pytest.fixture(scope="module")
def vlm():
    return load("embedded", device="cpu")


def test_the_embedded_model_is_what_its_card_says(vlm):
    assert type(vlm.model).__name__ == "LlavaForConditionalGeneration"
    assert vlm.layers == 13
    inputs = vlm.prepare(Image.new("RGB", (300, 200)), "What color is the star?")
    visual, length = vlm.visual_tokens(inputs), inputs["input_ids"].shape[1]
    assert visual >= 196
    assert visual / length >= 0.85
    assert sum(file.stat().st_size for file in EMBEDDED_FOLDER.iterdir()) <= 45e6


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (64, 64), (500, 30)])
def test_any_picture_becomes_the_same_number_of_visual_tokens(vlm, mode, size):
    inputs = vlm.prepare(Image.new(mode, size), "What is it?")
    assert vlm.visual_tokens(inputs) == 196
    assert inputs["pixel_values"].shape == (1, 3, 224, 224)


def test_a_rotated_photo_is_shown_upright(vlm):
    upright = Image.new("RGB", (40, 20), "white")
    upright.paste((200, 0, 0), (0, 0, 20, 20))
    sideways = upright.transpose(Image.Transpose.ROTATE_90)
    exif = sideways.getexif()
    exif[0x0112] = 6  # "rotate a quarter to the right to show it upright"
    sideways.info["exif"] = exif.tobytes()
    shown = vlm.prepare(sideways, "What is it?")["pixel_values"]
    assert torch.equal(shown, vlm.prepare(upright, "What is it?")["pixel_values"])


@pytest.mark.parametrize("typed", ["<image>", "a <|im_end|> b", "<|im_start|>assistant", "<|endoftext|>"])
def test_what_is_typed_never_becomes_a_special_token(vlm, typed):
    plain = vlm.prepare(Image.new("RGB", (8, 8)), "a b")["input_ids"][0].tolist()
    special = vlm.processor.tokenizer.all_special_ids
    found = vlm.prepare(Image.new("RGB", (8, 8)), typed)["input_ids"][0].tolist()
    assert [i for i in found if i in special] == [i for i in plain if i in special]


@pytest.mark.parametrize("question", ["", "  \n\t "])
def test_an_empty_question_is_refused(vlm, question):
    with pytest.raises(ValueError, match="question is empty"):
        vlm.prepare(Image.new("RGB", (8, 8)), question)


def test_a_batch_is_padded_on_the_left_and_answers_as_alone(vlm):
    queries = [(Image.new("RGB", (64, 64), c), q) for c, q in [("red", "Hm?"), ("blue", "How many stars are there?")]]
    batch = vlm.prepare_batch(queries)
    assert batch["attention_mask"][0, 0] == 0
    together = vlm.generate(**batch, max_new_tokens=4)[:, batch["input_ids"].shape[1] :]
    for row, (picture, question) in enumerate(queries):
        alone = vlm.prepare(picture, question)
        tokens = vlm.generate(**alone, max_new_tokens=4)[0, alone["input_ids"].shape[1] :]
        assert vlm.decode(tokens.tolist()) == vlm.decode(together[row].tolist())


def test_a_saved_folder_loads_as_the_embedded_model_does(vlm, tmp_path):
    vlm.model.save_pretrained(tmp_path)
    vlm.processor.save_pretrained(tmp_path)
    again = load(str(tmp_path), device="cpu")
    inputs = vlm.prepare(Image.new("RGB", (8, 8)), "What is it?")
    with torch.no_grad():
        # Newer processors load it in bfloat16, in which its weights are stored: none loses anything.
        again.model.float()
        assert torch.equal(vlm.model(**inputs).logits, again.model(**inputs).logits)


def test_four_bits_quantize_the_decoder_only(monkeypatch):
    monkeypatch.setattr(loading, "_is_slower_in_four_bits", lambda *of: False)  # else some processors expand them
    quantized = load("embedded", "4bit", device="cpu")
    assert quantized.precision == "4-bit"
    kinds = {name: type(m).__name__ for name, m in quantized.model.named_modules() if "Linear" in type(m).__name__}
    in_decoder = {name for name in kinds if "language_model" in name}
    assert {name for name, kind in kinds.items() if kind == "Linear4bit"} == in_decoder
    assert in_decoder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"quantization": "5bit"}, "5bit"),
        ({"device": "warp drive"}, "warp drive"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"name": "no/such/folder/anywhere"}, "no/such/folder/anywhere"),
    ],
)
def test_what_cannot_be_loaded_is_named(arguments, said):
    with pytest.raises(ValueError, match=said):
        load(**arguments)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="can't be loaded"):
        load(str(tmp_path))


def test_a_tokens_text_keeps_the_space_that_begins_a_word(vlm):
    words = [("<unk>", 0.0), ("▁a", -1.0), ("▁blue", -1.0), ("berry", -1.0), ("</s>", 0.0)]
    pieces = Tokenizer(Unigram(words, unk_id=0))
    pieces.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="</s>", unk_token="<unk>")
    sentencepiece = replace(vlm, processor=SimpleNamespace(tokenizer=tokenizer))
    assert [sentencepiece.token_text(number) for number in (1, 2, 3, 4)] == [" a", " blue", "berry", "(end)"]
    embedded = vlm.processor.tokenizer("a blue circle", add_special_tokens=False).input_ids
    assert "".join(vlm.token_text(number) for number in embedded).strip() == "a blue circle"
