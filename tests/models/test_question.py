import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import hub_tokenizers
from tests.hub_tokenizers import CHAT_TEMPLATES, HUB_TOKENIZERS
from vtw_demo.models.question import EMPTY, as_plain_text, control_tokens, read_question

TOKENIZERS = {name: make() for name, make in HUB_TOKENIZERS.items()}
# What stands before and after a question in their chats.
FRAMES = {
    hub_tokenizers.VICUNA: ("USER: <image>\n", " ASSISTANT:"),
    hub_tokenizers.CHATML: ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
    hub_tokenizers.SMOLVLM: ("<|im_start|>User:<image>", "<end_of_utterance>\nAssistant:"),
    hub_tokenizers.GEMMA: ("<bos><start_of_turn>user\n<start_of_image>", "<end_of_turn>\n<start_of_turn>model\n"),
}


def parts_of(name):
    """What an attack is put together from: control tokens, their beginnings and ends, and what tokenizers normalise."""
    tokens = list(control_tokens(TOKENIZERS[name]).values())
    halves = [half for token in tokens for half in (token[:-1], token[1:], token[: len(token) // 2])]
    return st.sampled_from(
        [*tokens, *halves, " ", "\n", "▁", "<", ">", "|", "/", "\u200b", "\u00a0", "é", "漢", "s", "a b"]
    )


def tokens_of(name, text):
    tokenizer = TOKENIZERS[name]
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", HUB_TOKENIZERS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_nothing_typed_becomes_a_control_token(name, data):
    tokenizer, (before, after) = TOKENIZERS[name], FRAMES[CHAT_TEMPLATES[name]]
    typed = "".join(data.draw(st.lists(parts_of(name), min_size=1, max_size=8)))
    controls = set(control_tokens(tokenizer))
    own = [number for number in tokens_of(name, before + "x" + after) if number in controls]
    plain = as_plain_text(typed, before, after, tokenizer)
    assert [number for number in tokens_of(name, before + plain + after) if number in controls] == own
    # Spaces are put in, and at worst a piece is left out: nothing is added.
    letters = iter(re.sub(r"\s", "", typed))
    assert all(letter in letters for letter in re.sub(r"\s", "", plain))


@pytest.mark.parametrize("name", HUB_TOKENIZERS)
@pytest.mark.parametrize(
    "typed", ["What is it?", "a < b > c", "x <- y", "2 / 3 | 4", "Was ist das? Größe 漢字", "e.g. <3", "USER"]
)
def test_ordinary_text_is_left_as_it_is(name, typed):
    assert as_plain_text(typed, *FRAMES[CHAT_TEMPLATES[name]], TOKENIZERS[name]) == typed


@pytest.mark.parametrize("name", HUB_TOKENIZERS)
def test_each_special_token_is_broken_by_a_space(name):
    tokenizer = TOKENIZERS[name]
    for token in tokenizer.all_special_tokens:
        assert as_plain_text(f"a {token} b", "", "", tokenizer) == f"a {token[0]} {token[1:]} b"


def test_what_begins_in_the_text_and_ends_in_the_template_is_found():
    tokenizer = TOKENIZERS["llava"]
    image = tokenizer.convert_tokens_to_ids("<image>")
    plain = as_plain_text("look <im", "", "age> there", tokenizer)
    assert image not in tokenizer(f"{plain}age> there")["input_ids"]


@pytest.mark.parametrize(
    "nothing", ["", " \u3000", "\u200b\ufeff", "\x00\x1b", "\ud83d", "\ufe0f", "\u3164\u2800", "\x85\v"]
)
def test_a_question_of_nothing_visible_is_empty(nothing):
    with pytest.raises(ValueError, match=re.escape(EMPTY)):
        read_question(nothing)
    assert "Is it 🟥️?" in read_question(f"{nothing}Is it 🟥️?{nothing}")


def test_what_breaks_lines_goes_on_breaking_them():
    assert read_question("One\x85two\vthree\ffour\u2028five\x00six\r\n") == "One\ntwo\nthree\nfour\u2028fivesix"
