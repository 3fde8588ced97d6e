"""Tokenizers of the classes that the models in `vtw_demo.models.registry` have on the hub, spelling text in characters.

Each normalises and splits text as the published one, and has its added tokens, but no merges.
"""

from __future__ import annotations

from collections.abc import Callable

import transformers as hf
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

LETTERS = [chr(number) for number in range(33, 127)]
FALLBACK = [f"<0x{number:02X}>" for number in range(256)]
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())

QWEN2_SPECIAL = ("<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
                 "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>",
                 "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")  # fmt: skip
QWEN2_ADDED = ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|repo_name|>", "<|file_sep|>")
QWEN3_ADDED = ("<tool_response>", "</tool_response>", "<think>", "</think>")
INTERNVL_SPECIAL = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
GEMMA_SPECIAL = ("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>")
GEMMA_ADDED = ("[multimodal]", "<unused0>", "\n", "\n\n", "▁▁", "\t", "<table>", "</strong>")
SMOLVLM_SPECIAL = ("<|im_start|>", "<repo_name>", "<reponame>", "<fake_token_around_image>", "<image>",
                   "<end_of_utterance>", "<global-img>", "<row_1_col_1>", "<row_2_col_3>")  # fmt: skip


def _numbered(pieces: list[str]) -> dict[str, int]:
    return {piece: number for number, piece in enumerate(pieces)}


def _with(
    tokenizer: hf.PreTrainedTokenizerFast, special: tuple[str, ...], added: tuple[str, ...] = ()
) -> hf.PreTrainedTokenizerFast:
    tokenizer.add_tokens([AddedToken(content, special=True, normalized=False) for content in special])
    tokenizer.add_tokens([AddedToken(content, special=False, normalized=False) for content in added])
    return tokenizer


def llama() -> hf.PreTrainedTokenizerFast:
    """Vicuna's, as it lies in the folders of LLaVA: a space is put before the text, which is then all one piece."""
    vocabulary = _numbered(["<unk>", "<s>", "</s>", *FALLBACK, "▁", *LETTERS])
    spelled = Tokenizer(models.BPE(vocab=vocabulary, merges=[], fuse_unk=True, byte_fallback=True, unk_token="<unk>"))
    spelled.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    spelled.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    wrapped = hf.PreTrainedTokenizerFast(
        tokenizer_object=spelled, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    spelled.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _with(wrapped, ("<image>",))


def video_llama() -> hf.PreTrainedTokenizerFast:
    """Vicuna's as Video-LLaVA has it: transformers' own class."""
    vocabulary = _numbered(["<unk>", "<s>", "</s>", *FALLBACK, "▁", *LETTERS])
    wrapped = hf.LlamaTokenizer(vocab=vocabulary, pad_token="<pad>", add_bos_token=True)
    return _with(wrapped, ("<image>", "<video>"))


def qwen2(special: tuple[str, ...] = QWEN2_SPECIAL, added: tuple[str, ...] = QWEN2_ADDED) -> hf.PreTrainedTokenizerFast:
    wrapped = hf.Qwen2Tokenizer(vocab=_numbered(["<|endoftext|>", *BYTES]), eos_token="<|im_end|>")
    return _with(wrapped, special, added)


def internvl() -> hf.PreTrainedTokenizerFast:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    vocabulary = _numbered(["<|endoftext|>", *BYTES])
    wrapped = hf.Qwen2Tokenizer(vocab=vocabulary, eos_token="<|im_end|>", extra_special_tokens=named)
    return _with(wrapped, INTERNVL_SPECIAL + QWEN2_SPECIAL, QWEN2_ADDED)


def smolvlm() -> hf.PreTrainedTokenizerFast:
    wrapped = hf.GPT2Tokenizer(
        vocab=_numbered(["<|endoftext|>", *BYTES]), eos_token="<end_of_utterance>", pad_token="<|im_end|>"
    )
    return _with(wrapped, SMOLVLM_SPECIAL)


def gemma3() -> hf.PreTrainedTokenizerFast:
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    vocabulary = _numbered(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *FALLBACK, "▁", *LETTERS])
    return _with(
        hf.GemmaTokenizer(vocab=vocabulary, add_bos_token=True, extra_special_tokens=named), GEMMA_SPECIAL, GEMMA_ADDED
    )


HUB_TOKENIZERS: dict[str, Callable[[], hf.PreTrainedTokenizerFast]] = {
    "llava": llama,
    "llava_next": llama,
    "llava_onevision": lambda: qwen2(("<|im_start|>", "<|im_end|>", "<image>", "<video>")),
    "video_llava": video_llama,
    "qwen2_5_vl": qwen2,
    "qwen3_vl": lambda: qwen2(added=QWEN2_ADDED + QWEN3_ADDED),
    "qwen3_5": lambda: qwen2(added=QWEN2_ADDED + QWEN3_ADDED),
    "internvl": internvl,
    "smolvlm": smolvlm,
    "gemma3": gemma3,
}
"""By the name of a family in `tests.saved_models`."""

_PART = (
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ 'IMAGE' }}"
    "{% elif part['type'] == 'video' %}{{ 'VIDEO' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}" + _PART + "{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VICUNA = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    + _PART.replace("'IMAGE'", "'IMAGE\n'").replace("'VIDEO'", "'VIDEO\n'")
    + "{{ ' ' }}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
SMOLVLM = (
    "<|im_start|>{% for message in messages %}User:" + _PART + "{{ '<end_of_utterance>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>user\n' }}"
    + _PART.replace("part['text']", "part['text'] | trim")
    + "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
CHAT_TEMPLATES: dict[str, str] = {
    "llava": VICUNA,
    "llava_next": VICUNA,
    "video_llava": VICUNA,
    "smolvlm": SMOLVLM,
    "gemma3": GEMMA,
} | dict.fromkeys(("llava_onevision", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "internvl"), CHATML)
"""What a published chat template does with one message, with IMAGE and VIDEO where a picture or a clip stands."""
