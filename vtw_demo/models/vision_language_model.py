"""A vision-language model with its processor: what it is asked, and what it answers."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.video_utils import VideoMetadata

from vtw_demo.errors import UserError
from vtw_demo.models.devices import give_memory_back
from vtw_demo.models.image import shown_picture
from vtw_demo.models.processors import FRAMES_APART, TAKES_CLIPS
from vtw_demo.models.prompt import Prompt
from vtw_demo.models.question import EMPTY, as_plain_text, read_question
from vtw_demo.models.video import Clip, FrameSampling, Shown, find_clip
from vtw_demo.withdrawal.architectures import find_decoder
from vtw_demo.withdrawal.segments import segment_ids, visual_token_ids, visual_token_mask

Quantization = Literal["4bit", "8bit"]

# What Video-LLaVA was trained with.
APART_FRAMES = 8
# The Qwen-VLs' own settings where their files say none, and this project's cap: a frame is up to 384 visual tokens.
PAIRED_FRAMES, FRAMES_PER_SECOND, MOST_FRAMES = 4, 2.0, 16
# Stands for the question while a chat template is filled in: no text that a template changes.
_QUESTION = "\ue000question\ue000"


@dataclass(frozen=True)
class VisionLanguageModel:
    """A loaded model with its processor. `quantization` is None where weights are in `model.dtype`.

    `quantize_all`: whether it touches more than the decoder layers.
    `revision` tells versions of a model apart: the commit of one from the hub, else made from its files' sizes and
    times; "" where it isn't known.
    """

    name: str
    model: PreTrainedModel
    processor: Any
    quantization: Quantization | None = None
    revision: str = ""
    quantize_all: bool = False

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
        if self.quantization is None:
            return str(self.model.dtype).removeprefix("torch.")
        bits = {"4bit": "4-bit", "8bit": "8-bit"}[self.quantization]
        return f"{bits} throughout" if self.quantize_all else bits

    @property
    def quantized(self) -> str:
        """What is held in fewer bits, in a sentence."""
        kept = str(self.model.dtype).removeprefix("torch.")
        if self.quantization is None:
            return f"Nothing is quantized: all weights are {kept}."
        bits = {"4bit": "4 bits (NF4, double quantization)", "8bit": "8 bits"}[self.quantization]
        held = len(self.quantized_modules)
        if self.quantize_all:
            total = sum(isinstance(module, nn.Linear) for module in self.model.modules())
            modules, rest = f"{held} of {total} linear modules", "the norms and what else isn't linear"
        else:
            modules = f"The {held} linear modules of the {self.layers} decoder layers"
            rest = "the vision tower, the projector and the head"
        return f"{modules} are held in {bits}; the embedding, {rest} in {kept}."

    @property
    def quantized_modules(self) -> tuple[str, ...]:
        """The names of the linear modules that are held in fewer bits."""
        kinds = ("Linear4bit", "Linear8bitLt")
        return tuple(name for name, module in self.model.named_modules() if type(module).__name__ in kinds)

    @property
    def memory_bytes(self) -> int:
        """What the weights take on the device."""
        return self.model.get_memory_footprint()

    @property
    def sampling(self) -> FrameSampling | None:
        """How many frames of a clip the model is shown; None where it is asked about pictures only."""
        model_type = self.model.config.model_type
        if model_type not in TAKES_CLIPS or not hasattr(self.processor, "video_processor"):
            return None
        if model_type in FRAMES_APART:
            return FrameSampling(APART_FRAMES, APART_FRAMES)
        settings = self.processor.video_processor.settings
        fewest, most = settings.get("min_frames") or PAIRED_FRAMES, settings.get("max_frames") or MOST_FRAMES
        most = min(most, MOST_FRAMES)
        return FrameSampling(min(fewest, most), most, settings.get("fps") or FRAMES_PER_SECOND)

    def release(self) -> None:
        """Give the weights' memory back, whoever still holds this model: it can't be used any more."""
        for tensor in itertools.chain(self.model.parameters(), self.model.buffers()):
            tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
            # bitsandbytes' scales, and in 8 bits the weights themselves.
            vars(tensor).clear()
        for module in self.model.modules():
            for held in ("state", "quant_state"):
                vars(module).pop(held, None)
        give_memory_back()

    def shown(self, given: Any) -> Shown:
        """What the model sees of a clip, or the path of one, or of what `shown_picture` takes; raises what it does."""
        if isinstance(given, str | os.PathLike):
            given = find_clip(given, self.sampling) or given
        return given if isinstance(given, Clip) else shown_picture(given)

    def prompt(self, given: Any, question: str) -> Prompt:
        """One question about one picture or clip, ready to be asked. Takes and raises what `prepare_batch` does."""
        shown = self.shown(given)
        inputs = self.prepare(shown, question)
        segments = segment_ids(self.model.config, inputs["input_ids"], inputs.get("attention_mask"))[0]
        return Prompt(shown, question.strip(), MappingProxyType(inputs), segments)

    def prepare(self, given: Any, question: str) -> dict[str, torch.Tensor]:
        """The model's inputs for one picture or clip and one question: `prepare_batch` of one."""
        return self.prepare_batch([(given, question)])

    def prepare_batch(self, queries: Sequence[tuple[Any, str]]) -> dict[str, torch.Tensor]:
        """The model's inputs for what `shown` takes, with a question each, on its device.

        input_ids and attention_mask (batch, sequence), left-padded, the placeholders of visual tokens expanded,
        and the pixels in the shape that the model's processor gives them. What a user types never becomes a
        special token.

        Raises ValueError for an empty question, what `shown` refuses, and a clip where the model takes pictures only.
        """
        queries = [(self.shown(given), question) for given, question in queries]
        pictures = [[shown] for shown, _ in queries if not isinstance(shown, Clip)]
        clips = [shown for shown, _ in queries if isinstance(shown, Clip)]
        if clips and self.sampling is None:
            raise UserError(f"{self.name} is asked about pictures, not about clips: choose a picture.")
        media: dict[str, Any] = {"images": pictures} if pictures else {}
        if clips:
            media["videos"] = [list(clip.frames) for clip in clips]
            # transformers counts times in frames: as if there were one each millisecond.
            media["video_metadata"] = [
                VideoMetadata(
                    total_num_frames=max(1, round(1000 * clip.seconds)),
                    fps=1000.0,
                    duration=clip.seconds,
                    frames_indices=[round(1000 * time) for time in clip.times],
                )
                for clip in clips
            ]
        prompts = [self._text("video" if isinstance(shown, Clip) else "image", text) for shown, text in queries]
        first_token = self.processor.tokenizer.bos_token
        inputs = self.processor(
            **media,
            text=prompts,
            # As transformers does: most chat templates write the first token themselves, LLaVA-1.5's leaves it out.
            add_special_tokens=first_token is None or not prompts[0].startswith(first_token),
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        return {
            # Pixels alone: masks and times keep their type.
            name: value.to(self.device, self.model.dtype if value.is_floating_point() and "pixel" in name else None)
            for name, value in inputs.items()
        }

    def _text(self, kind: str, question: str) -> str:
        messages = [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": _QUESTION}]}]
        template = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        before, _, after = template.partition(_QUESTION)
        text = as_plain_text(read_question(question), before, after, self.processor.tokenizer)
        if not text.strip():
            raise UserError(EMPTY)
        return before + text + after

    def visual_tokens(self, inputs: dict[str, torch.Tensor]) -> int:
        """How many of the prompt's tokens are visual."""
        return int(visual_token_mask(self.model.config, inputs["input_ids"]).sum())

    def generate(self, **arguments: Any) -> Any:
        """The model's own `generate`, greedy, without placeholders: in an answer they'd stand for no picture."""
        model: Any = self.model
        placeholders = list(visual_token_ids(model.config))
        return model.generate(**arguments, do_sample=False, num_beams=1, suppress_tokens=placeholders)

    def decode(self, token_ids: list[int] | tuple[int, ...]) -> str:
        return self.processor.tokenizer.decode(token_ids, skip_special_tokens=True).strip()

    def token_text(self, token_id: int) -> str:
        """One token as it stands in an answer, its leading space included; "(end)" for the one that ends it."""
        tokenizer = self.processor.tokenizer
        if token_id == tokenizer.eos_token_id:
            return "(end)"
        text = tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        # SentencePiece's decoders drop the space with which a text begins.
        begins_word = tokenizer.convert_ids_to_tokens(token_id).startswith("▁")
        return f" {text}" if begins_word and not text.startswith(" ") else text
