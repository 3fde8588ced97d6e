"""Answers as the VQA evaluations compare them.

As the VQA v2 evaluation does (visualqa.org/evaluation): lower case, digits for number words, no articles, contractions
with their apostrophe, no punctuation of sentences; signs such as %, $, colons and apostrophes stay.
"""

import re

NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
           "seven": "7", "eight": "8", "nine": "9", "ten": "10"}  # fmt: skip
ARTICLES = ("a", "an", "the")
# None that is another word without its apostrophe: its, were, well, ill, shed and the like stay as they are.
WITH_APOSTROPHE = (
    "ain't", "aren't", "can't", "could've", "couldn't", "didn't", "doesn't", "don't", "hadn't", "hasn't", "haven't",
    "he'd", "he's", "how'd", "how'll", "how's", "i'm", "i've", "isn't", "it'd", "it'll", "ma'am", "might've",
    "mightn't", "must've", "mustn't", "needn't", "not've", "o'clock", "oughtn't", "shan't", "she's", "should've",
    "shouldn't", "somebody's", "someone's", "something's", "that's", "there'd", "there're", "there's", "they'd",
    "they'll", "they're", "they've", "wasn't", "we've", "weren't", "what'll", "what're", "what's", "what've", "when's",
    "where'd", "where's", "where've", "who'd", "who'll", "who's", "who've", "why'll", "why're", "why's", "won't",
    "would've", "wouldn't", "y'all", "you'd", "you'll", "you're", "you've",
)  # fmt: skip
CONTRACTIONS = {written.replace("'", ""): written for written in WITH_APOSTROPHE}

_DIGIT_COMMA = re.compile(r"(?<=\d),(?=\d)")
_PERIOD = re.compile(r"\.(?!\d)")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


def normalise(answer: str) -> str:
    """The answer as it is compared with others; "" where nothing but punctuation is left.

    Unlike in the VQA evaluation, an answer that is nothing but an article stays: "A" may be a letter.
    """
    text = " ".join(answer.lower().replace("’", "'").split())
    bare = text
    for mark in _PUNCTUATION:
        # Between words it parts them; at a word's end, and in numbers, it is dropped.
        is_dropped = f"{mark} " in text or f" {mark}" in text or _DIGIT_COMMA.search(text)
        bare = bare.replace(mark, "" if is_dropped else " ")
    words = [NUMBERS.get(word, word) for word in _PERIOD.sub("", bare).split()]
    words = [word for word in words if word not in ARTICLES] or words
    return " ".join(CONTRACTIONS.get(word, word) for word in words)
