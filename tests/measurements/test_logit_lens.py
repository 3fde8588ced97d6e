"""Hidden states and lenses against those of the unmodified model: its own early exits, and masking for withdrawal."""

import dataclasses
import json
from contextlib import ExitStack, contextmanager, nullcontext

import numpy as np
import pytest
import torch
from PIL import Image

from tests import saved_models
from tests.families import BRANCHES, FAMILIES, LAYERS
from tests.grids import nightly_but
from tests.oracles import visual_keys_blocked
from tests.tiny_models import TinyModel, build, oracle
from vtw_demo.measurements.logit_lens import Migration, measure_migration
from vtw_demo.models.loading import VisionLanguageModel
from vtw_demo.withdrawal.segments import visual_token_mask
from vtw_demo.withdrawal.withdraw import withdraw

QUESTION = "What do you see?"
ANSWER = [11, 12, 13]
GREY = (128, 128, 128)
ROWS = {
    "one image": [1, 2, "image", 3, 4, 5],
    "several images": [1, "image", 2, 3, "image", "image", 4, 5],
}


@dataclasses.dataclass(frozen=True)
class TinyVision(VisionLanguageModel):
    """A tiny model without a processor: a question is a name of `ROWS`, and a grey picture has other pixels than all
    others."""

    tiny: TinyModel | None = None

    def prepare(self, image, question):
        inputs = self.tiny.prompt(ROWS[question])
        if image.getpixel((0, 0)) == GREY:
            # Places of patches are numbers that aren't floating.
            return {name: 1 - value if value.is_floating_point() else value for name, value in inputs.items()}
        return inputs

    def token_text(self, token_id):
        return f"t{token_id}"


def tiny_vision(name):
    tiny = build(name)
    return TinyVision(name, tiny.model, None, tiny=tiny)


def plain(size=(64, 48), colour="red"):
    return Image.new("RGB", size, colour)


def with_answer(inputs, answer):
    answer = torch.tensor([answer])
    followed = {**inputs, "input_ids": torch.cat([inputs["input_ids"], answer], dim=1)}
    if "attention_mask" in inputs:
        followed["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(answer)], dim=1)
    for name in inputs.keys() & {"token_type_ids", "mm_token_type_ids"}:
        # In paligemma 1 is what attends to what came before only; elsewhere it is an image.
        answer_type = int(not inputs[name].any())
        followed[name] = torch.cat([inputs[name], torch.full_like(answer, answer_type)], dim=1)
    return followed


def decoder_layers(model):
    decoder = model.get_decoder()
    return decoder.layers if hasattr(decoder, "layers") else decoder.model.layers


@contextmanager
def ends_after(model, layer):
    """Inside the block, later decoder layers hand on what they get, so that the model ends after `layer`."""

    def hand_on(module, args, output):
        return (args[0], *output[1:]) if isinstance(output, tuple) else args[0]

    with ExitStack() as hooks:
        for module in decoder_layers(model)[layer + 1 :]:
            hooks.callback(module.register_forward_hook(hand_on).remove)
        yield


def early_exits(model, inputs, answer, layer=None, withdrawn=visual_keys_blocked):
    """(layers, answer): the probability of each token if the model ended after each layer.

    With `layer`, as the oracle `withdrawn` has it from there on.
    """
    whole = with_answer(inputs, answer)
    visual = visual_token_mask(model.config, whole["input_ids"])
    first = inputs["input_ids"].shape[1] - 1
    rows = []
    for last in range(len(decoder_layers(model))):
        with torch.no_grad(), ends_after(model, last), withdrawn(model, layer, visual) if layer else nullcontext():
            probabilities = model(**whole).logits[0].float().softmax(-1)
        rows.append([probabilities[first + index, token].item() for index, token in enumerate(answer)])
    return np.array(rows)


def hidden_states(model, inputs):
    """After each layer, (sequence, hidden): transformers' own, and for the last, which those have normed, what enters
    the final norm."""
    entered = []
    decoder = model.get_decoder()
    decoder = decoder if hasattr(decoder, "layers") else decoder.model
    norm = next(part for name, part in decoder.named_children() if name in ("norm", "ln_f", "norm_f", "embedding_norm"))
    handle = norm.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    try:
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states
    finally:
        handle.remove()
    return [state[0].double() for state in (*states[1:-1], entered[-1])]


def cosine_distances(model, inputs, others):
    """(layers, text tokens after the first visual one), from the definition of the cosine."""
    visual = visual_token_mask(model.config, inputs["input_ids"])[0].tolist()
    places = [place for place, is_visual in enumerate(visual) if not is_visual and any(visual[:place])]
    rows = []
    for state, other in zip(hidden_states(model, inputs), hidden_states(model, others), strict=True):
        products = [state[place] @ other[place] / (state[place].norm() * other[place].norm()) for place in places]
        rows.append([1 - product.item() for product in products])
    return np.array(rows)


def hooks(model):
    """What a hook or a replaced forward would change."""
    return [
        (len(module._forward_hooks), len(module._forward_pre_hooks), "forward" in module.__dict__)
        for module in model.modules()
    ]


def generated(vlm, picture, question=QUESTION, max_new_tokens=6):
    inputs = vlm.prepare(picture, question)
    out = vlm.generate(**inputs, max_new_tokens=max_new_tokens)
    return inputs, out[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", nightly_but(BRANCHES, FAMILIES))
def test_the_lens_is_the_models_own_early_exit_in_every_family(name, rows):
    """Withdrawn, that of the oracle."""
    vlm = tiny_vision(name)

    def withdrawn_by_oracle(model, layer, visual):
        return oracle(build(name), layer, visual)

    inputs = vlm.prepare(plain(), rows)
    measured = measure_migration(vlm, vlm.prompt(plain(), rows), ANSWER, 2)
    full = early_exits(vlm.model, inputs, ANSWER)
    withdrawn = early_exits(vlm.model, inputs, ANSWER, 2, withdrawn_by_oracle)
    np.testing.assert_allclose(measured.probability, full, atol=1e-6, rtol=1e-4)
    np.testing.assert_allclose(measured.withdrawn_probability, withdrawn, atol=1e-6, rtol=1e-4)
    assert not np.allclose(full[2:], withdrawn[2:], atol=1e-5, rtol=1e-2)
    np.testing.assert_allclose(measured.withdrawn_probability[:2], measured.probability[:2], atol=1e-6, rtol=0)


# gemma3n has several streams, which what enters its norm has mixed.
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", nightly_but(BRANCHES, [name for name in FAMILIES if name != "gemma3n"]))
def test_distances_are_those_of_transformers_hidden_states_in_every_family(name, rows):
    vlm = tiny_vision(name)
    inputs, blank = (vlm.prepare(plain(colour=colour), rows) for colour in ("red", GREY))
    measured = measure_migration(vlm, vlm.prompt(plain(), rows), ANSWER, 2)
    expected = cosine_distances(vlm.model, inputs, blank)
    np.testing.assert_allclose(measured.distance, expected, atol=1e-5, rtol=0)
    assert expected.max() > 1e-2
    ids = inputs["input_ids"][0].tolist()
    visual = visual_token_mask(vlm.model.config, inputs["input_ids"])[0].tolist()
    text = [token for place, token in enumerate(ids) if any(visual[:place]) and not visual[place]]
    assert measured.tokens == tuple(f"t{token}" for token in text)
    assert measured.tokens[-2:] == ("t4", "t5")
    assert "t1" not in measured.tokens  # it stands before the image


def test_the_distance_of_several_streams_is_that_of_the_first():
    vlm = tiny_vision("gemma3n")
    inputs, blank = (vlm.prepare(plain(colour=colour), "one image") for colour in ("red", GREY))
    streams = []
    with ExitStack() as stack, torch.no_grad():
        for module in decoder_layers(vlm.model):
            handle = module.register_forward_hook(lambda module, args, output: streams.append(output[0, 0, -3:]))
            stack.callback(handle.remove)
        for given in (inputs, blank):
            vlm.model(**given)
    measured = measure_migration(vlm, vlm.prompt(plain(), "one image"), ANSWER, 2)
    for layer, row in enumerate(measured.distance):
        expected = 1 - torch.cosine_similarity(streams[layer], streams[LAYERS + layer], dim=-1)
        assert row[-3:] == pytest.approx(expected.tolist(), abs=1e-5)


def test_of_the_embedded_model_everything_is_what_plain_passes_give(vlm, picture):
    inputs, answer = generated(vlm, picture)
    layer = 5
    measured = measure_migration(vlm, vlm.prompt(picture, QUESTION), answer, layer)
    assert measured.answer == tuple(vlm.token_text(token) for token in answer)
    blank = vlm.prepare(Image.new("RGB", picture.size, GREY), QUESTION)
    np.testing.assert_allclose(measured.distance, cosine_distances(vlm.model, inputs, blank), atol=1e-5, rtol=0)
    # Norm and head by hand, on transformers' hidden states.
    first = inputs["input_ids"].shape[1] - 1
    norm, head = vlm.model.get_decoder().norm, vlm.model.lm_head
    with torch.no_grad():
        for row, state in zip(measured.probability, hidden_states(vlm.model, with_answer(inputs, answer)), strict=True):
            lens = head(norm(state.float()[first:-1])).softmax(-1)
            assert row == pytest.approx([lens[index, token].item() for index, token in enumerate(answer)], abs=1e-5)
    blocked = early_exits(vlm.model, inputs, answer, layer)
    np.testing.assert_allclose(measured.withdrawn_probability, blocked, atol=1e-5, rtol=0)
    assert "".join(measured.tokens).strip().startswith("What do you see?")
    json.dumps(dataclasses.asdict(measured))


@pytest.mark.parametrize("layer", [1, 7, 13])
def test_after_the_last_layer_it_is_the_models_own_probability(vlm, picture, layer):
    inputs, answer = generated(vlm, picture)
    measured = measure_migration(vlm, vlm.prompt(picture, QUESTION), answer, layer)
    whole = with_answer(inputs, answer)
    first = inputs["input_ids"].shape[1] - 1
    for k, found in ((13, measured.probability), (layer, measured.withdrawn_probability)):
        with torch.no_grad(), withdraw(vlm.model, k):
            own = vlm.model(**whole).logits[0, first:-1].softmax(-1)
        assert found[-1] == pytest.approx([own[index, token].item() for index, token in enumerate(answer)], abs=1e-6)
    assert (measured.withdrawn_probability == measured.probability) == (layer == 13)


def test_withdrawal_changes_nothing_before_its_layer(vlm, picture):
    _, answer = generated(vlm, picture)
    first, second = (measure_migration(vlm, vlm.prompt(picture, QUESTION), answer, layer) for layer in (4, 9))
    assert first.distance == second.distance
    assert first.probability == second.probability
    for measured in (first, second):
        k = measured.withdrawal_layer
        np.testing.assert_allclose(measured.withdrawn_probability[:k], measured.probability[:k], atol=1e-6, rtol=0)
        assert measured.withdrawn_probability[k:] != measured.probability[k:]


def test_a_blank_picture_is_at_no_distance_from_its_blank(vlm):
    _, answer = generated(vlm, plain())
    for size in ((224, 224), (90, 30)):
        measured = measure_migration(vlm, vlm.prompt(plain(size, GREY), QUESTION), answer, 6)
        assert np.abs(measured.distance).max() < 1e-6
    assert np.max(measure_migration(vlm, vlm.prompt(plain(), QUESTION), answer, 6).distance) > 1e-3


@pytest.mark.parametrize("name", ["llava_next", "qwen2_vl", "idefics3"])
def test_the_blank_has_the_pictures_size_as_it_is_shown(name):
    """A camera's picture may be stored turned; models of these families make as many tokens as a picture is large."""
    vlm = VisionLanguageModel(name, *saved_models.build(name))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 96, 3), dtype=np.uint8))
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # it is to be shown turned to the right
    upright, stored = (measure_migration(vlm, vlm.prompt(given, "ab?"), [40, 41], 2) for given in (picture, turned))
    assert upright == stored
    inputs, blank = (vlm.prepare(given, "ab?") for given in (picture, plain(picture.size, GREY)))
    np.testing.assert_allclose(upright.distance, cosine_distances(vlm.model, inputs, blank), atol=1e-5, rtol=0)
    assert "".join(upright.tokens).endswith("ab?assistant:")


def test_a_long_answer_reads_the_head_on_few_positions_at_once(vlm, picture):
    _, answer = generated(vlm, picture)
    long = answer * 25
    positions = []
    handle = vlm.model.lm_head.register_forward_hook(lambda module, args, output: positions.append(output.shape[-2]))
    try:
        measured = measure_migration(vlm, vlm.prompt(picture, QUESTION), long, 6)
    finally:
        handle.remove()
    assert len(long) > 128
    assert max(positions) <= 128
    with torch.no_grad():
        own = vlm.model(**with_answer(vlm.prepare(picture, QUESTION), long)).logits[0, -len(long) - 1 : -1].softmax(-1)
    assert measured.probability[-1] == pytest.approx(
        own.gather(1, torch.tensor(long)[:, None])[:, 0].tolist(), abs=1e-5
    )
    short = measure_migration(vlm, vlm.prompt(picture, QUESTION), answer, 6)
    np.testing.assert_allclose(np.array(measured.probability)[:, : len(answer)], short.probability, atol=1e-5, rtol=0)


def test_an_answer_of_one_token(vlm, picture):
    inputs, answer = generated(vlm, picture, max_new_tokens=1)
    measured = measure_migration(vlm, vlm.prompt(picture, QUESTION), answer, 6)
    with torch.no_grad():
        own = vlm.model(**inputs).logits[0, -1].softmax(-1)
    assert measured.probability[-1] == pytest.approx((own.max().item(),), abs=1e-6)
    assert measured.answer == (vlm.token_text(answer[0]),)


def test_the_model_is_left_as_it_was(vlm, picture):
    _, answer = generated(vlm, picture)
    before = hooks(vlm.model)
    measured = measure_migration(vlm, vlm.prompt(picture, QUESTION), answer, 5)
    assert hooks(vlm.model) == before

    def fail(*args):
        raise KeyboardInterrupt

    for module in (vlm.model.get_decoder().layers[7], vlm.model.lm_head):
        handle = module.register_forward_pre_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            measure_migration(vlm, vlm.prompt(picture, QUESTION), answer, 5)
        handle.remove()
        assert hooks(vlm.model) == before
    assert measure_migration(vlm, vlm.prompt(picture, QUESTION), answer, 5) == measured


def test_no_other_withdrawal_gets_in(vlm, picture):
    with withdraw(vlm.model, 3), pytest.raises(RuntimeError, match="active on this"):
        measure_migration(vlm, vlm.prompt(picture, QUESTION), [5], 3)


@pytest.mark.parametrize(
    ("question", "answer", "layer", "error", "message"),
    [
        (QUESTION, [], 3, ValueError, "no answer to look for"),
        (QUESTION, [5], 0, ValueError, "from 1 to 13, the number of decoder layers; this is 0"),
        (QUESTION, [5], 14, ValueError, "from 1 to 13, the number of decoder layers; this is 14"),
        (QUESTION, [5], "3", TypeError, "must be an integer"),
        (QUESTION, [5.5, 6], 3, ValueError, "must be integers"),
        ("  ", [5], 3, ValueError, "question is empty"),
    ],
)
def test_bad_arguments(vlm, picture, question, answer, layer, error, message):
    with pytest.raises(error, match=message):
        measure_migration(vlm, vlm.prompt(picture, question), answer, layer)


def test_an_answer_with_a_placeholder(vlm, picture):
    with pytest.raises(ValueError, match="placeholder of an image"):
        measure_migration(vlm, vlm.prompt(picture, QUESTION), [vlm.model.config.image_token_id, 5], 3)


@pytest.mark.parametrize("layer", [2, LAYERS])
@pytest.mark.parametrize(
    ("row", "message"), [([1, 2, "image"], "ends with a visual token"), ([1, 2, 3], "at least one token")]
)
def test_prompts_without_text_after_a_picture(monkeypatch, row, message, layer):
    monkeypatch.setitem(ROWS, "bad", row)
    with pytest.raises(ValueError, match=message):
        measure_migration(tiny_vision("llava"), tiny_vision("llava").prompt(plain(), "bad"), ANSWER, layer)


VALID = Migration(
    tokens=("a", "b", "c"),
    distance=((0.0, 0.1, 0.2), (0.5, 1.5, 2.0)),
    answer=("x", "y"),
    probability=((0.0, 0.25), (0.5, 1.0)),
    withdrawn_probability=((0.0, 0.25), (0.25, 0.5)),
    withdrawal_layer=1,
)


def test_result_is_immutable_plain_data():
    assert VALID.layers == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        VALID.withdrawal_layer = 2
    assert json.loads(json.dumps(dataclasses.asdict(VALID))) == {
        "tokens": ["a", "b", "c"],
        "distance": [[0.0, 0.1, 0.2], [0.5, 1.5, 2.0]],
        "answer": ["x", "y"],
        "probability": [[0.0, 0.25], [0.5, 1.0]],
        "withdrawn_probability": [[0.0, 0.25], [0.25, 0.5]],
        "withdrawal_layer": 1,
    }
