"""A vision-language model with its processor: what it is asked, and what it answers."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from jinja2 import TemplateError
from PIL import Image, ImageOps
from transformers import PreTrainedModel
from transformers.video_utils import VideoMetadata

from vtw_demo.errors import UserError
from vtw_demo.formats import sentences
from vtw_demo.models.devices import give_memory_back
from vtw_demo.models.image import shown_picture
from vtw_demo.models.picture_detail import DETAILS, Detail, detail_settings, read_detail
from vtw_demo.models.processors import FRAMES_APART, TAKES_CLIPS
from vtw_demo.models.prompt import Prompt
from vtw_demo.models.quantization import quantization_settings, quantized_bits
from vtw_demo.models.question import EMPTY, as_plain_text, read_question
from vtw_demo.models.video import Clip, FrameSampling, Shown, find_clip
from vtw_demo.withdrawal.architectures import find_decoder
from vtw_demo.withdrawal.segments import segment_ids, visual_token_ids, visual_token_mask
from vtw_demo.withdrawal.teacher_forcing import with_answer

Quantization = Literal["4bit", "8bit"]
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)

# What Video-LLaVA was trained with.
APART_FRAMES = 8
# The Qwen-VLs' own settings where their files say none, and this project's cap: a frame is up to 384 visual tokens.
PAIRED_FRAMES, FRAMES_PER_SECOND, MOST_FRAMES = 4, 2.0, 16
# Stand for a question and an answer while a chat template is filled in: no text that a template changes.
_QUESTION, _ANSWER = "\ue000question\ue000", "\ue000answer\ue000"


@dataclass(frozen=True)
class VisionLanguageModel:
    name: str
    model: PreTrainedModel
    processor: Any
    # Tells versions of a model apart: the commit of one from the hub, else made from its files' sizes and times; ""
    # where it isn't known.
    revision: str = ""
    note: str = ""  # what is to be said of its files in a sentence, if anything
    picture_detail: Detail = "usual"  # how much of a picture it is to be shown; `detail` is what that comes to
    sharing: int = 1  # how many replicas of it compute on one CPU

    def at_detail(self, detail: Any) -> VisionLanguageModel:
        """The same model, shown so much of a picture. Raises UserError for a word that is none of `DETAILS`."""
        return replace(self, picture_detail=read_detail(detail))

    @property
    def details(self) -> tuple[Detail, ...]:
        """Those that show this model something else; "usual" alone where it takes pictures in one size."""
        usual = self._settings("usual")
        return tuple(detail for detail in DETAILS if detail == "usual" or self._settings(detail) != usual)

    @property
    def detail(self) -> Detail:
        """The one of `details` that is used."""
        return self.picture_detail if self.picture_detail in self.details else "usual"

    @cached_property
    def picture_settings(self) -> dict[str, Any]:
        """What the detail sets, beside the processor's own settings."""
        return self._settings(self.picture_detail)

    @property
    def images_kwargs(self) -> dict[str, Any]:
        """What a call of the processor takes of them."""
        given = {name: value for name, value in self.picture_settings.items() if name != "picture"}
        return {"images_kwargs": given} if given else {}

    def _settings(self, detail: Detail) -> dict[str, Any]:
        image_processor = getattr(self.processor, "image_processor", None)
        return detail_settings(image_processor, detail, self.device.type == "cpu")

    @property
    def layers(self) -> int:
        """L, the number of decoder layers."""
        return len(find_decoder(self.model).layers)

    @property
    def context(self) -> int | None:
        """How many positions, prompt and answer together, the decoder was made for; None where it doesn't say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def check_length(self, prompt: int, new_tokens: int) -> None:
        """Raise UserError for a prompt of so many tokens that doesn't fit into `context` with its answer."""
        needed, context = prompt + new_tokens, self.context
        if context is not None and needed > context:
            raise UserError(
                f"The question is too long: with the picture and the answer it takes {needed} tokens, and this model's "
                f"context holds {context}. Shorten the question or allow fewer new tokens."
            )

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def _inputs_device(self) -> torch.device:
        return self.device

    @property
    def place(self) -> str:
        """The device, in words."""
        return f"{self.device}, which {self.sharing} replicas share" if self.sharing > 1 else str(self.device)

    @cached_property
    def _held(self) -> tuple[dict[str, int], str]:
        return quantized_bits(self.model)

    @property
    def quantized_modules(self) -> tuple[str, ...]:
        """The names of the linear modules that are held in fewer bits than 16."""
        return tuple(self._held[0])

    @property
    def quantization(self) -> str | None:
        """ "4bit" or "8bit" for bitsandbytes, or the name of another method; None where nothing is quantized."""
        return quantization_settings(self.model.config).get("method")

    @property
    def precision(self) -> str:
        """What the weights are held in, in words: "4-bit", "8-bit throughout", "4-bit in part (awq)", "bfloat16"..."""
        (bits, extent), method = self._held, self.quantization
        held = " and ".join(f"{number}-bit" for number in sorted({*bits.values()}))
        words = f"{held}{extent}" if held else self._dtype
        return words if method in (None, *QUANTIZATIONS) else f"{words} ({method})"

    @property
    def quantized(self) -> str:
        """What is held in fewer bits, in a sentence."""
        (bits, extent), settings = self._held, quantization_settings(self.model.config)
        modules, template = {"number": len(bits), "extent": extent}, Path(__file__).with_name("quantized.txt")
        return sentences(template, vlm=self, modules=modules, settings=settings, dtype=self._dtype)

    @property
    def _dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def memory_bytes(self) -> int:
        """What the weights take on the device, with the constants of those in 4 bits."""
        states = [vars(weights).get("quant_state") for weights in self.model.parameters()]
        nested = [getattr(state, "state2", None) for state in states]
        return self.model.get_memory_footprint() + sum(state.absmax.nbytes for state in (*states, *nested) if state)

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
        _ = self._held  # which is still asked for
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
        if isinstance(given, Clip):
            return given
        picture = shown_picture(given)
        longest: int = self.picture_settings.get("picture", max(picture.size))
        return picture if max(picture.size) <= longest else ImageOps.contain(picture, (longest, longest))

    def prompt(self, given: Any, question: str) -> Prompt:
        """One question about one picture or clip, ready to be asked. Takes and raises what `prepare_batch` does."""
        shown = self.shown(given)
        inputs = self.prepare(shown, question)
        segments = segment_ids(self.model.config, inputs["input_ids"], inputs.get("attention_mask"))[0]
        return Prompt(shown, question.strip(), MappingProxyType(inputs), segments)

    def continued(self, prompt: Prompt, answer: Sequence[int], question: str) -> Prompt:
        """A conversation that goes on: a prompt, the answer to it, and a further question about the same picture.

        The tokens of the prompt and of the answer, `answer`, with or without the end's, stay as they are; those of the
        question follow as the chat template writes a second turn. All of the prompt and the answer but its last token
        is `held`: what `generate` leaves in its KV cache.

        Raises ValueError for an empty question, and where the template doesn't go on after an answer.
        """
        kind = "video" if isinstance(prompt.shown, Clip) else "image"
        said = answer[:-1] if answer and answer[-1] in self.ends else answer
        tokens = [*said, *self._following(kind, question)]
        inputs = with_answer(self.model, prompt.inputs, tokens)
        segments = segment_ids(self.model.config, inputs["input_ids"], inputs.get("attention_mask"))[0]
        held = prompt.length + max(len(answer) - 1, 0)
        return replace(prompt, question=question.strip(), inputs=MappingProxyType(inputs), segments=segments, held=held)

    @property
    def ends(self) -> tuple[int, ...]:
        """The token ids that end an answer."""
        config = self.model.generation_config
        found = None if config is None else config.eos_token_id
        return () if found is None else (found,) if isinstance(found, int) else tuple(found)

    def prepare(self, given: Any, question: str) -> dict[str, torch.Tensor]:
        """The model's inputs for one picture or clip and one question: `prepare_batch` of one."""
        return self.prepare_batch([(given, question)])

    def prepare_batch(self, queries: Sequence[tuple[Any, str]]) -> dict[str, torch.Tensor]:
        """The model's inputs for what `shown` takes, with a question each, on its device.

        input_ids and attention_mask (batch, sequence), left-padded, the placeholders of visual tokens expanded, and the
        pixels in the shape that the model's processor gives them. What a user types never becomes a special token.

        Raises ValueError for an empty question, what `shown` refuses, and a clip where the model takes pictures only.
        """
        on = self._inputs_device
        return {
            # Pixels alone: masks and times keep their type.
            name: value.to(on, self.model.dtype if value.is_floating_point() and "pixel" in name else None)
            for name, value in self._processed(queries).items()
            if name != "labels"  # PaliGemma's processor gives those of a training, too
        }

    def picture_tokens(self, picture: Image.Image) -> int:
        return self.visual_tokens(self._processed([(picture, "?")]))

    def _processed(self, queries: Sequence[tuple[Any, str]]) -> dict[str, torch.Tensor]:
        """The inputs in this machine's memory, as the processor gives them."""
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
        return self.processor(
            **media,
            **self.images_kwargs,
            text=prompts,
            # As transformers does: most chat templates write the first token themselves, LLaVA-1.5's leaves it out.
            add_special_tokens=first_token is None or not prompts[0].startswith(first_token),
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )

    def _text(self, kind: str, question: str) -> str:
        before, _, after = self._filled_in([_asked({"type": kind})]).partition(_QUESTION)
        return before + self._plain(question, before, after) + after

    def _following(self, kind: str, question: str) -> list[int]:
        """The tokens between an answer and the next one, for a further question."""
        first = _asked({"type": kind})
        answered = {"role": "assistant", "content": [{"type": "text", "text": _ANSWER}]}
        try:
            so_far, whole = self._filled_in([first]), self._filled_in([first, answered, _asked()])
        except TemplateError:
            so_far = whole = ""
        begun, _, rest = whole.partition(_ANSWER)
        before, is_there, after = rest.partition(_QUESTION)
        if not is_there or begun.rstrip() != so_far.rstrip():
            raise UserError(
                f"The chat template of {self.name} doesn't go on after an answer, so no second question can follow in "
                "the same conversation. Ask it as a first one."
            )
        # After a letter, since some tokenizers put a space before what begins a text.
        text = "x" + before + self._plain(question, before, after) + after
        found = self.processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        pairs = zip(found["input_ids"], found["offset_mapping"], strict=True)
        return [number for number, (start, _) in pairs if start > 0]

    def _filled_in(self, messages: list[dict[str, Any]]) -> str:
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def _plain(self, question: str, before: str, after: str) -> str:
        text = as_plain_text(read_question(question), before, after, self.processor.tokenizer)
        if not text.strip():
            raise UserError(EMPTY)
        return text

    def visual_tokens(self, inputs: dict[str, torch.Tensor]) -> int:
        return int(visual_token_mask(self.model.config, inputs["input_ids"]).sum())

    def generate(self, **arguments: Any) -> Any:
        """The model's own `generate`, greedy, with a growing KV cache whatever its files say, and without placeholders:
        in an answer they'd stand for no picture."""
        model: Any = self.model
        placeholders = list(visual_token_ids(model.config))
        kind = {} if "past_key_values" in arguments else {"cache_implementation": "dynamic"}
        cache = {"use_cache": True, **kind}
        return model.generate(**arguments, **cache, do_sample=False, num_beams=1, suppress_tokens=placeholders)

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


def _asked(*media: dict[str, str]) -> dict[str, Any]:
    return {"role": "user", "content": [*media, {"type": "text", "text": _QUESTION}]}
