"""What can be loaded, and how: a vision-language model together with its processor."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from PIL import Image, ImageOps
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, PreTrainedModel
from transformers.utils.quantization_config import QuantizationConfigMixin

from vtw_demo.family_cases import check_family, find_decoder
from vtw_demo.segments import visual_token_ids
from vtw_demo.withdrawal import withdraw

Quantization = Literal["4bit", "8bit"]
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)
EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).resolve().parent.parent / "assets" / "embedded"


@dataclass(frozen=True)
class VisionLanguageModel:
    """A loaded model with its processor. `quantization` is None where weights are in `model.dtype`.

    `revision` tells versions of a model apart: the commit of one from the hub, else made from its files' sizes and
    times; "" where it isn't known.
    """

    name: str
    model: PreTrainedModel
    processor: Any
    quantization: Quantization | None = None
    revision: str = ""

    @property
    def layers(self) -> int:
        """L, the number of decoder layers."""
        return len(find_decoder(self.model).layers)

    @property
    def context(self) -> int | None:
        """How many positions, prompt and answer together, the decoder was made for; None where it doesn't say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def precision(self) -> str:
        """What the weights are held in, in words: "4-bit", "8-bit", "bfloat16" and so on."""
        return {"4bit": "4-bit", "8bit": "8-bit"}.get(self.quantization or "", str(self.model.dtype).split(".")[-1])

    def prepare(self, image: Image.Image, question: str) -> dict[str, torch.Tensor]:
        """The model's inputs for one picture and one question: `prepare_batch` of one."""
        return self.prepare_batch([(image, question)])

    def prepare_batch(self, queries: Sequence[tuple[Image.Image, str]]) -> dict[str, torch.Tensor]:
        """The model's inputs for pictures with a question each, on its device.

        input_ids and attention_mask (batch, sequence), left-padded, the placeholders of visual tokens expanded,
        and the pixels in the shape that the model's processor gives them. What a user types never becomes a
        special token.

        Raises ValueError for an empty question.
        """
        prompts = []
        for _, question in queries:
            text = self._plain_text(question).strip()
            if not text:
                raise ValueError("The question is empty: type what you want to know about the picture.")
            content = [{"type": "image"}, {"type": "text", "text": text}]
            message = {"role": "user", "content": content}
            prompts.append(self.processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False))
        inputs = self.processor(
            images=[ImageOps.exif_transpose(image).convert("RGB") for image, _ in queries],
            text=prompts,
            # Chat templates write the start of the sequence themselves where their model wants one.
            add_special_tokens=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        return {
            name: value.to(self.device, self.model.dtype) if value.is_floating_point() else value.to(self.device)
            for name, value in inputs.items()
        }

    def visual_tokens(self, inputs: dict[str, torch.Tensor]) -> int:
        """How many of the prompt's tokens are visual."""
        ids = torch.tensor(visual_token_ids(self.model.config), device=inputs["input_ids"].device)
        return int(torch.isin(inputs["input_ids"], ids).sum())

    def generate(self, **arguments: Any) -> Any:
        """The model's own `generate`, greedy, without placeholders: in an answer they'd stand for no picture."""
        generate: Any = self.model.generate
        placeholders = list(visual_token_ids(self.model.config))
        return generate(**arguments, do_sample=False, num_beams=1, suppress_tokens=placeholders)

    def decode(self, token_ids: list[int] | tuple[int, ...]) -> str:
        return self.processor.tokenizer.decode(token_ids, skip_special_tokens=True).strip()

    def token_text(self, token_id: int) -> str:
        """One token as it stands in an answer, its leading space included; "(end)" for the one that ends it."""
        if token_id == self.processor.tokenizer.eos_token_id:
            return "(end)"
        tokenizer = self.processor.tokenizer
        text = tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        # SentencePiece's decoders drop the space with which a text begins.
        begins_word = tokenizer.convert_ids_to_tokens(token_id).startswith("▁")
        return f" {text}" if begins_word and not text.startswith(" ") else text

    def _plain_text(self, text: str) -> str:
        """`text` with special tokens broken by a space after their first character."""
        for token in self.processor.tokenizer.all_special_tokens:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text


def load(
    name: str = EMBEDDED, quantization: Quantization | None = None, device: str | None = None
) -> VisionLanguageModel:
    """Load a model and its processor, ready to run: warmed up with and without withdrawal.

    - `name`: "embedded" (the model that ships with this project), a folder, or a hub id.
    - `quantization`: None, "4bit" (bitsandbytes NF4 with double quantization) or "8bit". The embedding, the
      head, the vision tower and the projector stay as they are.
    - `device`: "cuda", "cpu", ...; None takes a GPU where there is one.

    Weights that aren't quantized are bfloat16 where the device computes in it, else float32. Only safetensors
    are read, and no code that comes with a model is run.

    Raises ValueError, in a sentence for people, for an unknown quantization, a device that isn't there, a model
    that can't be found or loaded, and one in which withdrawal can't mean anything.
    """
    if quantization is not None and quantization not in QUANTIZATIONS:
        raise ValueError(f"Unknown quantization {quantization!r}: choose {' or '.join(QUANTIZATIONS)}, or none.")
    target = _device(device)
    source = EMBEDDED_FOLDER if name == EMBEDDED else name
    dtype = torch.bfloat16 if _computes_in_bfloat16(target) else torch.float32
    try:
        processor = AutoProcessor.from_pretrained(source)
        model = AutoModelForImageTextToText.from_pretrained(
            source,
            dtype=dtype,
            device_map={"": target},
            quantization_config=_quantization_config(quantization, dtype),
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"The model {str(name)!r} can't be loaded: {reason} Check the id or the folder, or use {EMBEDDED!r}."
        ) from error
    check_family(model)
    revision = getattr(model.config, "_commit_hash", None) or _folder_revision(Path(source))
    vlm = VisionLanguageModel(str(name), model.eval(), processor, quantization, revision)
    _warm_up(vlm)
    return vlm


def _folder_revision(folder: Path) -> str:
    """Another one whenever a file of the model has changed; reading gigabytes of weights would take too long."""
    if not folder.is_dir():
        return ""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
    states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return f"files-{hashlib.sha256(repr(states).encode()).hexdigest()[:12]}"


def _device(asked: str | None) -> torch.device:
    if asked is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise ValueError(
            f"Unknown device {asked!r}: name one as torch does, for example cuda, cuda:1 or cpu."
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"The device {asked!r} is not there: torch sees {torch.cuda.device_count()} CUDA GPUs. Use cpu instead."
        )
    return device


def _computes_in_bfloat16(device: torch.device) -> bool:
    if device.type != "cpu":
        return True
    # Without these instructions a CPU's bfloat16 products take three times as long as its float32 ones.
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def _quantization_config(quantization: Quantization | None, dtype: torch.dtype) -> QuantizationConfigMixin | None:
    # Names of the parts that keep their precision, over the families; transformers reads each as a pattern.
    parts = ("lm_head", "vision_tower", "vision_model", "visual", "multi_modal_projector", "connector")
    kept = [rf"(.*\.)?{part}" for part in parts]
    if quantization == "4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=kept,
        )
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return None


def _warm_up(vlm: VisionLanguageModel) -> None:
    """A short answer, full and withdrawn: what a first run pays for (kernels, allocator) is paid here."""
    inputs = vlm.prepare(Image.new("RGB", (64, 64), "gray"), "What is this?")
    for layer in (vlm.layers, max(1, vlm.layers // 2)):
        with torch.inference_mode(), withdraw(vlm.model, layer):
            vlm.generate(**inputs, max_new_tokens=3)
