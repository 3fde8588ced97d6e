import random

import pytest
import torch

from vtw_demo.embedded.scenes import draw, random_scene
from vtw_demo.embedded.training.model import GRID_SIDE
from vtw_demo.embedded.training.packing import IGNORED, pack

ASKED = [[("colour", "What color is the star?", "red"), ("count", "How many objects are there?", "3")]] * 2


@pytest.fixture(scope="module")
def pictures():
    return [draw(random_scene(random.Random(seed), 2)) for seed in range(2)]


def prompt_ids(processor, question):
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor.tokenizer.encode(text.replace("<image>", "<image>" * GRID_SIDE**2))


def test_each_packed_turn_is_the_conversation_that_is_asked_later(processor, pictures, tiny_model):
    """Logits of a packed turn equal those of the same question asked alone, through the chat template."""
    packed = pack(processor, ASKED, length=240)
    shown = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    model = tiny_model().eval()
    with torch.no_grad():
        logits = model(
            input_ids=packed.input_ids,
            pixel_values=shown,
            position_ids=packed.position_ids,
            attention_mask=packed.attention_mask(),
        ).logits
        for row, questions in enumerate(ASKED):
            for number, (kind, question, answer) in enumerate(questions, row * len(questions)):
                assert packed.kinds[number] == kind
                ids = prompt_ids(processor, question)
                start = ((packed.turns[row] == number) & (packed.labels[row] != IGNORED)).nonzero()[0, 0]
                assert packed.ends[number] == (row, int(start))
                alone = model(input_ids=torch.tensor([ids]), pixel_values=shown[row : row + 1]).logits[0, -1]
                torch.testing.assert_close(logits[row, start], alone, atol=1e-4, rtol=0)
                reply = [*processor.tokenizer.encode(answer), processor.tokenizer.eos_token_id]
                assert packed.labels[row, start : start + len(reply)].tolist() == reply


def test_what_does_not_fit_is_left_out_whole(processor):
    room = len(prompt_ids(processor, ASKED[0][0][1])) + 3
    packed = pack(processor, ASKED, length=room)
    assert packed.kinds == ["colour", "colour"]
    assert [row for row, _ in packed.ends] == [0, 1]


def test_a_coarse_grid_keeps_the_positions_of_places_and_of_the_text(processor):
    fine, coarse = pack(processor, ASKED, length=240), pack(processor, ASKED, length=240, grid_side=7)
    opening = int((fine.input_ids[0] == processor.image_token_id).nonzero()[0, 0])
    visual = coarse.position_ids[0][coarse.input_ids[0] == processor.image_token_id] - opening
    assert len(visual) == 49
    assert torch.equal(visual, torch.tensor([28 * row + 2 * column for row in range(7) for column in range(7)]))
    assert torch.equal(coarse.position_ids[coarse.turns >= 0], fine.position_ids[fine.turns >= 0])
    assert torch.equal(coarse.labels[coarse.turns >= 0], fine.labels[fine.turns >= 0])
