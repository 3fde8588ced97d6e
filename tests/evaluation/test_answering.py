"""All answers from one sweep against plain runs of `withdraw`, one question at a time."""

from dataclasses import replace

import pytest
import torch

from vtw_demo.embedded.phrasings import TESTED
from vtw_demo.embedded.unknown_pictures import MODEST_ANSWER, TESTED_PHOTOS, TRAINED_PHOTOS
from vtw_demo.evaluation.answering import answer_samples, chooses_likeliest, prompt_sizes
from vtw_demo.evaluation.data import BUILT_IN, easy_vqa_test, unknown_photos
from vtw_demo.evaluation.variants import FULL, WAYS, Variant, obstacle
from vtw_demo.measurements.flops import prefill_flops
from vtw_demo.measurements.layer_sweep import choose_layer, sweep
from vtw_demo.withdrawal.withdraw import withdraw

LAYERS = (2, 6, 9, 11)


@pytest.fixture(scope="module")
def samples():
    return BUILT_IN["scenes"](5, 0).samples + BUILT_IN["descriptions"](1, 0).samples


@pytest.fixture(scope="module")
def found(vlm, samples):
    variants = [FULL, *(Variant("withdrawn", layer) for layer in LAYERS)]
    return answer_samples(vlm, samples, variants, 40, batch_size=4)


@pytest.mark.parametrize("layer", [*LAYERS, 13])
def test_answers_are_those_of_plain_runs(vlm, samples, found, layer):
    variant = FULL if layer == 13 else Variant("withdrawn", layer)
    for sample, outcomes in zip(samples, found, strict=True):
        inputs = vlm.prepare(sample.open(), sample.question)
        with torch.inference_mode():
            full = vlm.model(**inputs).logits[0, -1].log_softmax(-1)
            with withdraw(vlm.model, layer):
                output = vlm.generate(**inputs, max_new_tokens=40)
                withdrawn = vlm.model(**inputs).logits[0, -1].log_softmax(-1)
        assert outcomes[variant].answer == vlm.decode(output[0, inputs["input_ids"].shape[1] :].tolist())
        kl = (withdrawn.exp() * (withdrawn - full)).sum().item()
        assert outcomes[variant].kl == pytest.approx(kl, abs=1e-4)
        size = prompt_sizes(vlm, inputs)[0]
        flops = [prefill_flops(vlm.model.config, size.tokens, size.visual, k) for k in (layer, 13)]
        assert outcomes[variant].flops_left == pytest.approx(flops[0] / flops[1])


def test_some_answers_differ(found):
    """Else the runs above would show nothing of answers that a sweep doesn't give."""
    assert any(of[Variant("withdrawn", 2)].answer != of[FULL].answer for of in found)
    assert any(of[Variant("withdrawn", 11)].answer == of[FULL].answer for of in found)


def test_models_that_punish_repetition_answer_in_plain_runs(vlm, samples):
    config = vlm.model.generation_config
    config.repetition_penalty = 5.0
    try:
        assert not chooses_likeliest(vlm)
        (outcomes,) = answer_samples(vlm, samples[-1:], [FULL, Variant("withdrawn", 11)], 30, batch_size=4)
        inputs = vlm.prepare(samples[-1].open(), samples[-1].question)
        with torch.inference_mode(), withdraw(vlm.model, 11):
            output = vlm.generate(**inputs, max_new_tokens=30)
    finally:
        config.repetition_penalty = None
    assert chooses_likeliest(vlm)
    assert outcomes[Variant("withdrawn", 11)].answer == vlm.decode(output[0, inputs["input_ids"].shape[1] :].tolist())


def test_what_doesnt_fit_into_the_context_is_refused(vlm, samples):
    long = replace(samples[0], question="star " * 1830)
    assert len(answer_samples(vlm, [long], [FULL], 1, batch_size=1)) == 1
    with pytest.raises(ValueError, match="this model's context holds 2048"):
        answer_samples(vlm, [samples[1], long], [FULL], 32, batch_size=2)


def test_ways_answer_in_any_batch(vlm, samples):
    others = [Variant(kind, 4) for kind in WAYS if kind not in ("blind", "auto", "own")]
    variants = [FULL, Variant("blind"), Variant("auto", threshold=0.97), Variant("own"), *others]
    together = answer_samples(vlm, samples[:3], variants, 8, batch_size=3)
    alone = [answer_samples(vlm, [sample], variants, 8, batch_size=1)[0] for sample in samples[:3]]
    for one, other in zip(together, alone, strict=True):
        for variant in variants:
            assert one[variant].answer == other[variant].answer
            assert one[variant].kl == pytest.approx(other[variant].kl, abs=1e-3)
    assert all(of[Variant("blind")].flops_left < of[Variant("fastv", 4)].flops_left for of in together)


def test_a_layer_for_each_question(vlm, samples):
    ways = [Variant("auto", threshold=0.97), Variant("auto", threshold=2), Variant("own")]
    asked = (samples[0], samples[-1])
    for sample, outcomes in zip(asked, answer_samples(vlm, asked, [FULL, *ways], 40, batch_size=2), strict=True):
        assert list(outcomes) == [FULL, *ways]
        inputs = vlm.prepare(sample.open(), sample.question)
        with torch.inference_mode(), withdraw(vlm.model, "auto", threshold=0.97) as withdrawal:
            output = vlm.generate(**inputs, max_new_tokens=40)
        auto, never, own = (outcomes[way] for way in ways)
        assert auto.answer == vlm.decode(output[0, inputs["input_ids"].shape[1] :].tolist())
        assert auto.layer == withdrawal.layer
        assert (never.layer, never.flops_left, never.answer) == (vlm.layers, 1, outcomes[FULL].answer)
        swept = sweep(vlm.model, inputs)
        assert own.layer == choose_layer(swept.layers, swept.kl)
        assert own.flops_left < auto.flops_left < 1


def test_fastv_cant_save_as_much_as_withdrawal_at_1(vlm):
    assert "can't save as much" in obstacle(vlm, Variant("fastv", 1))
    assert obstacle(vlm, Variant("fastv", 2)) is None


def test_built_in_data():
    fresh_scenes = BUILT_IN["scenes"]
    scenes = fresh_scenes(40, 0)
    assert [s.question for s in fresh_scenes(20, 0).samples] == [s.question for s in scenes.samples[:20]]
    assert [s.question for s in fresh_scenes(20, 1).samples] != [s.question for s in scenes.samples[:20]]
    assert len({sample.kind for sample in scenes.samples}) > 5
    easy = easy_vqa_test()
    assert len(easy.samples) == 9673
    assert {sample.kind for sample in easy.samples} == {"colour", "shape", "yes or no"}
    chosen = easy_vqa_test(50).samples
    assert len({sample.name for sample in chosen}) == 50
    assert {(sample.name, sample.references) for sample in chosen} <= {(s.name, s.references) for s in easy.samples}


def test_questions_in_other_words_are_of_the_tested_phrasings():
    asked = [sample.question for sample in BUILT_IN["rephrased"](60, 0).samples]

    def fits(question: str, variants: dict[str, tuple[str, ...]]) -> bool:
        return any(
            question.lower().startswith(text.lower().partition("{")[0]) and question.endswith(text[-1])
            for texts in variants.values()
            for text in texts
            if not text.startswith("{")
        )

    assert all(fits(question, TESTED) for question in asked)
    assert [sample.question for sample in BUILT_IN["rephrased"](30, 0).samples] == asked[:30]


def test_pictures_drawn_otherwise_have_many_sizes_and_are_the_same_each_time():
    samples = BUILT_IN["drawn-otherwise"](12, 0).samples
    sizes = {sample.open().size for sample in samples}
    assert len(sizes) > 8
    assert any(width != height for width, height in sizes)
    assert all(sample.open().tobytes() == sample.open().tobytes() for sample in samples)


def test_photos_are_parts_of_those_that_training_never_saw():
    data = unknown_photos(8)
    assert {sample.name.split()[0] for sample in data.samples} == set(TESTED_PHOTOS)
    assert not set(TESTED_PHOTOS) & set(TRAINED_PHOTOS)
    assert {sample.references for sample in data.samples} == {(MODEST_ANSWER,)}
    assert len({sample.open().tobytes() for sample in data.samples}) == len(data.samples)
    assert all(sample.open().tobytes() == sample.open().tobytes() for sample in data.samples)
