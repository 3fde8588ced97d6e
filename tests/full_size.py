"""SmolVLM2 in its full size, with random weights: its real configuration, processor classes and their settings.

`python -m tests.full_size FOLDER` writes the 256M and the 500M into a folder, 1.5 GB, each by its hub id.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers as hf
from tokenizers import AddedToken

from tests.hub_configs import CONFIGS
from tests.hub_tokenizers import BYTES, SMOLVLM
from tests.saved_models import NoVideos

NAMES = ("HuggingFaceTB/SmolVLM2-256M-Video-Instruct", "HuggingFaceTB/SmolVLM2-500M-Video-Instruct")
# As published: so many tokens of SmolLM2, and 128 more for pictures.
BASE, VOCABULARY = 49152, 49280
IMAGE, END = 49190, 49279
TILE, LONGEST_EDGE, TOKENS_OF_A_TILE = 512, 2048, 64


def tokenizer() -> hf.PreTrainedTokenizerFast:
    """It spells text in bytes; all else has the published ids."""
    pieces = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *BYTES]
    pieces += [f"Ġword{number}" for number in range(len(pieces), BASE)]
    wrapped = hf.GPT2Tokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)},
        merges=[],
        bos_token="<|im_start|>",
        eos_token="<|endoftext|>",
        pad_token="<|im_end|>",
    )
    of_tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    added = ["<global-img>", *of_tiles, "<fake_token_around_image>", "<image>"]
    added += [f"<|reserved_special_token_{number}|>" for number in range(VOCABULARY - BASE - len(added) - 1)]
    special = [*added, "<end_of_utterance>"]
    wrapped.add_tokens([AddedToken(content, special=True, normalized=False) for content in special])
    wrapped.eos_token = "<end_of_utterance>"
    return wrapped


def processor() -> Any:
    pictures = hf.SmolVLMImageProcessorPil(
        do_image_splitting=True,
        size={"longest_edge": LONGEST_EDGE},
        max_image_size={"longest_edge": TILE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        resample=1,
    )
    sampling = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": TILE}}
    videos = NoVideos("SmolVLMVideoProcessor", video_sampling=sampling)
    template = SMOLVLM.replace("IMAGE", "<image>").replace("VIDEO", "<video>")
    with mock.patch.object(hf.ProcessorMixin, "check_argument_for_proper_class"):
        made = hf.SmolVLMProcessor(pictures, tokenizer(), videos, image_seq_len=TOKENS_OF_A_TILE)
    made.chat_template = template
    return made


def save(name: str, folder: Path) -> None:
    """Write one of `NAMES`, in bfloat16. Its answers end after some ten tokens, as people's questions are answered:
    random weights repeat one token for ever, so that any may be an end then."""
    config: Any = CONFIGS[name]()
    config.image_token_id, config.text_config.pad_token_id = IMAGE, 2
    torch.manual_seed(0)
    model = hf.SmolVLMForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    model.generation_config = hf.GenerationConfig(
        bos_token_id=1, pad_token_id=2, min_new_tokens=10, eos_token_id=[*range(3, BASE), END]
    )
    model.save_pretrained(folder)
    made = processor()
    assert made.tokenizer.convert_tokens_to_ids(["<image>", "<end_of_utterance>"]) == [IMAGE, END]
    made.save_pretrained(folder)


if __name__ == "__main__":
    for name in NAMES:
        save(name, Path(sys.argv[1]) / name)
        print(f"Wrote {name}.")
