"""Prompts followed by an answer that is given, as one forward pass takes them: teacher forcing."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import PreTrainedModel

from vtw_demo.errors import UserError
from vtw_demo.withdrawal.architectures import answer_token_type
from vtw_demo.withdrawal.segments import visual_token_mask

TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
"""Inputs of shape (batch, sequence) that some models take beside `input_ids` and `attention_mask`."""


def check_prompt(inputs: Mapping[str, Any]) -> None:
    """Raise ValueError unless `inputs` hold prompts, `input_ids` of shape (batch, prompt), that end side by side."""
    input_ids = inputs.get("input_ids")
    if input_ids is None:
        raise UserError("The inputs have no input_ids; hand what the model's processor returns.")
    if input_ids.ndim != 2 or 0 in input_ids.shape:
        raise UserError(f"input_ids must have the shape (batch, prompt); these have {tuple(input_ids.shape)}.")
    attention_mask = inputs.get("attention_mask")
    if attention_mask is None:
        return
    if attention_mask.shape != input_ids.shape:
        raise UserError(
            f"attention_mask has the shape {tuple(attention_mask.shape)}, input_ids have "
            f"{tuple(input_ids.shape)}; give the mask of these ids."
        )
    if not attention_mask[:, -1].all():
        raise UserError("The prompt is padded on the right; pad it on the left, or not at all.")


def check_prompt_end(model: PreTrainedModel, inputs: Mapping[str, Any]) -> None:
    """Raise ValueError if a prompt ends with a visual token: withdrawn, its last position attends to nothing."""
    if visual_token_mask(model.config, inputs["input_ids"][:, -1:]).any():
        raise UserError(
            "The prompt ends with a visual token, which withdrawal takes away: from the withdrawal layer on its "
            "last position attends to nothing. Put text after the image, or measure without withdrawal."
        )


def with_answer(
    model: PreTrainedModel, inputs: Mapping[str, Any], answer_token_ids: Sequence[int] | torch.Tensor | None
) -> dict[str, Any]:
    """The model's inputs for prompts and their answers, as if the model had generated these.

    - `inputs`: what a processor made of the prompts: `input_ids`, int64, shape (batch, prompt), and what goes with
      them (`attention_mask`, `pixel_values`, ...).
    - `answer_token_ids`: the answers' token ids, shape (batch, answer), or (answer,) for a batch of one; None
      for no answer.
    """
    check_prompt(inputs)
    input_ids, attention_mask = inputs["input_ids"], inputs.get("attention_mask")
    batch = input_ids.shape[0]
    answer = torch.as_tensor([] if answer_token_ids is None else answer_token_ids)
    if answer.ndim == 1 and (batch == 1 or answer.numel() == 0):
        answer = answer.expand(batch, -1)
    if answer.ndim != 2 or len(answer) != batch or (answer.numel() and answer.is_floating_point()):
        raise UserError(
            f"answer_token_ids must be integers of the shape ({batch}, answer tokens); these have the shape "
            f"{tuple(answer.shape)} and the type {answer.dtype}."
        )
    answer = answer.to(device=input_ids.device, dtype=input_ids.dtype)
    if visual_token_mask(model.config, answer).any():
        raise UserError(
            "answer_token_ids contain the placeholder of an image, which would be read as a picture. "
            "Generate with suppress_tokens=[its id]."
        )
    whole = {**inputs, "input_ids": torch.cat([input_ids, answer], dim=1)}
    if attention_mask is not None:
        whole["attention_mask"] = torch.cat([attention_mask, attention_mask.new_ones(answer.shape)], dim=1)
    for name in TOKEN_TYPES:
        if name in inputs:
            whole[name] = pad(inputs[name], (0, answer.shape[1]), value=answer_token_type(model.config))
    return whole
