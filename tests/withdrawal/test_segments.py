import pytest
import torch
from transformers import LlavaConfig, LlavaNextVideoConfig, PreTrainedConfig

from vtw_demo.withdrawal.segments import PADDING, Segment, segment_ids, visual_token_ids, visual_token_mask

IMAGE = 7
CONFIG = LlavaConfig(image_token_index=IMAGE)
FIRST, SYSTEM, VISUAL, QUESTION, ANSWER = range(5)


def test_segments_are_counted_in_reading_order():
    assert [segment.value for segment in Segment] == [
        "first token",
        "system text",
        "image",
        "question",
        "answer",
    ]
    assert [segment.number for segment in Segment] == [FIRST, SYSTEM, VISUAL, QUESTION, ANSWER]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([1, 2, IMAGE, IMAGE, 3], [FIRST, SYSTEM, VISUAL, VISUAL, QUESTION]),
        ([IMAGE, IMAGE, 3], [VISUAL, VISUAL, QUESTION]),
        ([1, IMAGE, 2, IMAGE, 3], [FIRST, VISUAL, QUESTION, VISUAL, QUESTION]),
        ([1, 2, 3], [FIRST, QUESTION, QUESTION]),
        ([1, IMAGE], [FIRST, VISUAL]),
    ],
    ids=["image in the middle", "image first", "two images", "no image", "image last"],
)
def test_prompt(row, expected):
    assert segment_ids(CONFIG, torch.tensor([row])).tolist() == [expected]


def test_padded_batch_with_answers():
    input_ids = torch.tensor([[0, 0, 1, IMAGE, 2, 3, 4], [1, 2, IMAGE, IMAGE, 3, 4, IMAGE]])
    attention_mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    ids = segment_ids(CONFIG, input_ids, attention_mask, prompt_length=5)
    assert ids.dtype == torch.int64
    # A placeholder that the model itself writes into its answer is part of the answer.
    assert ids.tolist() == [
        [PADDING, PADDING, FIRST, VISUAL, QUESTION, ANSWER, ANSWER],
        [FIRST, SYSTEM, VISUAL, VISUAL, QUESTION, ANSWER, ANSWER],
    ]


def test_visual_tokens_are_images_and_videos():
    config = LlavaNextVideoConfig(image_token_index=5, video_token_index=6)
    assert visual_token_ids(config) == (5, 6)
    mask = visual_token_mask(config, torch.tensor([[1, 5, 2, 6], [6, 3, 3, 3]]))
    assert mask.tolist() == [[False, True, False, True], [True, False, False, False]]


def test_a_configuration_without_placeholders_is_named():
    ids = torch.tensor([[1, IMAGE, 2]])
    with pytest.raises(ValueError, match="PreTrainedConfig names no placeholder"):
        visual_token_mask(PreTrainedConfig(), ids)
