"""A question as a model can be asked it: text that stays text.

No part of what a user types becomes a token that a model takes for a control sign.
"""

import reprlib
import unicodedata
from typing import Any

from vtw_demo.errors import UserError

EMPTY = "The question is empty: type what you want to know about the picture."
# Control characters, and halves of a pair: no text has them, and some tokenizers fail at them.
_LEFT_OUT = ("Cc", "Cs")
_BLANK = ("Zs", "Zl", "Zp", "Cf", "Mn", "Me")
# Letters and signs that show nothing: Hangul's fillers, Braille's blank.
_FILLERS = "\u115f\u1160\u3164\uffa0\u2800"
# A piece that is still a control token when it has been broken so often is left out.
_BREAKS = 3


def read_question(question: Any) -> str:
    """What was typed, stripped; control characters but tabs and line breaks are left out."""
    if not isinstance(question, str | None):
        raise UserError(f"The question must be text; this is {reprlib.repr(question)}.")
    text = without_control_characters(question or "").strip()
    if all(unicodedata.category(one) in _BLANK or one.isspace() or one in _FILLERS for one in text):
        raise UserError(EMPTY)
    return text


def without_control_characters(text: str) -> str:
    """Those that break lines, as a spreadsheet's, become line breaks."""
    left_out = {one for one in set(text) - set("\t\n\r") if unicodedata.category(one) in _LEFT_OUT}
    return text.translate({ord(one): "\n" if one.isspace() else "" for one in left_out})


def control_tokens(tokenizer: Any) -> dict[int, str]:
    """The tokens that text must not become, by id: special ones, and other added ones of more than one character.

    Added tokens that are white space, or a single letter, are how some tokenizers spell ordinary text.
    """
    return {
        number: token.content
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special or len(token.content.strip(" \n\t\r▁")) > 1
    }


def as_plain_text(text: str, before: str, after: str, tokenizer: Any) -> str:
    """`text` with a space in whatever would become a control token between `before` and `after` in a prompt.

    The tokenizer itself says what would, so that what it normalises, and what begins in the text and ends in the
    prompt, is found too. Text that holds nothing of the kind comes back unchanged.
    """
    broken = 0
    while pieces := _control_pieces(text, before, after, tokenizer):
        for first, last in reversed(pieces):
            text = text[:first] + ("" if broken == _BREAKS else _break(text[first:last])) + text[last:]
        broken = min(broken + 1, _BREAKS)
    return text


def _control_pieces(text: str, before: str, after: str, tokenizer: Any) -> list[tuple[int, int]]:
    """The parts of `text` (first character, the one after the last) that become control tokens, in order."""
    controls = control_tokens(tokenizer)
    encoded = tokenizer(before + text + after, add_special_tokens=False, return_offsets_mapping=True)
    pieces = set()
    for number, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        first, last = max(start - len(before), 0), min(end - len(before), len(text))
        if number not in controls or not text[first:last].strip() or first >= last:
            continue
        # Characters that a vocabulary lacks are this token, too.
        spelled_out = controls[number] in unicodedata.normalize("NFKC", text[first:last])
        if number != tokenizer.unk_token_id or spelled_out:
            pieces.add((first, last))
    return sorted(pieces)


def _break(piece: str) -> str:
    """With a space after its first character; one character is left out."""
    lead = len(piece) - len(piece.lstrip())
    if len(piece) - lead < 2:
        return " "
    return f"{piece[: lead + 1]} {piece[lead + 1 :]}"
