"""Which positions of a prompt are what: first token, system text, image, question, answer.

A visual token is a position of the decoder's own sequence whose token id is one of the model's
placeholders for an image or a video; its embedding comes from the vision encoder.
"""

from enum import StrEnum

import torch
from transformers import PreTrainedConfig

from vtw_demo.errors import UserError

PADDING = -1
"""What `segment_ids` writes where a row is padded."""

_PLACEHOLDER_NAMES = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")


class Segment(StrEnum):
    """The parts of a sequence, in the order that `segment_ids` counts them (0 to 4). The first token is one of its own,
    because deep layers use it as an attention sink (arXiv 2405.05803, section 3)."""

    FIRST_TOKEN = "first token"
    SYSTEM_TEXT = "system text"
    IMAGE = "image"
    QUESTION = "question"
    ANSWER = "answer"

    @property
    def number(self) -> int:
        """The number that stands for this segment in the tensor of `segment_ids`."""
        return tuple(Segment).index(self)


def visual_token_ids(config: PreTrainedConfig) -> tuple[int, ...]:
    """The token ids that a model replaces by features of an image or a video, in ascending order."""
    for part in (config, getattr(config, "vision_config", None)):  # phi4_multimodal names them in the latter
        found = {getattr(part, name, None) for name in _PLACEHOLDER_NAMES}
        if ids := tuple(sorted(token_id for token_id in found if isinstance(token_id, int))):
            break
    else:
        raise UserError(
            f"{type(config).__name__} names no placeholder token for images or videos "
            f"(looked for {', '.join(_PLACEHOLDER_NAMES)}), so its visual tokens can't be found."
        )
    return ids


def visual_token_mask(config: PreTrainedConfig, input_ids: torch.Tensor) -> torch.Tensor:
    """Where the visual tokens are: bool, shape (batch, sequence), for ids of that shape."""
    mask = torch.zeros_like(input_ids, dtype=torch.bool)
    for token_id in visual_token_ids(config):
        mask |= input_ids == token_id
    return mask


def segment_ids(
    config: PreTrainedConfig,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    prompt_length: int | None = None,
) -> torch.Tensor:
    """The segment of each position: int64, shape (batch, sequence), indices into `tuple(Segment)`.

    - `input_ids`, shape (batch, sequence): prompt and, if it is there already, the answer.
    - `attention_mask`, shape (batch, sequence), 0 where a row is padded (`PADDING` in the result).
    - `prompt_length`: positions that belong to the prompt, padding counted; later ones are the answer.

    The first position that isn't padding is the first token, except where it is visual: then it belongs
    to the image, whose share of attention must be 0 once it is withdrawn, and the row has no first token.
    Text before a row's first visual token is system text; text after it, between two images too, is the
    question, and so is all text of a row without an image.
    """
    present = (torch.ones_like(input_ids) if attention_mask is None else attention_mask).bool()
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    in_prompt = positions < (len(positions) if prompt_length is None else prompt_length)
    visual = visual_token_mask(config, input_ids) & present & in_prompt
    visual_so_far = visual.cumsum(1)
    before_image = (visual_so_far == 0) & visual.any(1, keepdim=True)
    first = present & (present.cumsum(1) == 1)

    ids = torch.full(input_ids.shape, Segment.QUESTION.number, device=input_ids.device)
    ids[before_image] = Segment.SYSTEM_TEXT.number
    ids[first] = Segment.FIRST_TOKEN.number
    ids[visual] = Segment.IMAGE.number
    ids[(~in_prompt).expand_as(ids)] = Segment.ANSWER.number
    ids[~present] = PADDING
    return ids
