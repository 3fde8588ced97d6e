"""The model of lmms-eval, in the environment that has it: see README."""

import pytest

pytest.importorskip("lmms_eval")

from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model
from lmms_eval.models.registry_v2 import ModelRegistryV2

from vtw_demo.evaluation.lmms_eval_model import VisualTokensWithdrawal
from vtw_demo.models import load
from vtw_demo.withdrawal import withdraw

QUESTION = "What do you see?"


def asked(picture, questions, **options):
    """The answers of a small task about one picture."""
    model = VisualTokensWithdrawal(device="cpu", **options)
    model.task_dict = {"task": {"test": [{"pictures": [picture]}]}}
    given = {"max_new_tokens": 24, "until": ["\n\n"]}
    return model.generate_until(
        [
            Instance("generate_until", (question, given, lambda document: document["pictures"], 0, "task", "test"), 0)
            for question in questions
        ]
    )


def test_the_entry_point_is_found():
    registry = ModelRegistryV2()
    assert not registry.load_entrypoint_manifests()
    assert registry.resolve("vtw").class_name == "VisualTokensWithdrawal"
    assert get_model("vtw") is VisualTokensWithdrawal


@pytest.mark.parametrize("layer", [3, 9, None])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_answers_are_those_of_withdraw(picture, layer, batch_size):
    vlm = load("embedded", device="cpu")
    questions = [QUESTION, "Is there a star?", "<image>\nHow many shapes are there?"]
    expected = []
    for question in questions:
        inputs = vlm.prepare(picture, question.replace("<image>\n", ""))
        with withdraw(vlm.model, vlm.layers if layer is None else layer):
            tokens = vlm.generate(**inputs, max_new_tokens=24)[0, inputs["input_ids"].shape[1] :]
        expected.append(vlm.decode(tokens.tolist()))
    assert asked(picture, questions, layer=layer, batch_size=batch_size) == expected


def test_what_it_cannot_do_is_said(picture):
    with pytest.raises(ValueError, match="13"):
        VisualTokensWithdrawal(layer=13, device="cpu")
    with pytest.raises(ValueError, match="at least 1 question"):
        VisualTokensWithdrawal(batch_size=0, device="cpu")
    with pytest.raises(ValueError, match="vtw takes no conv_template"):
        VisualTokensWithdrawal(conv_template="vicuna", device="cpu")
    model = VisualTokensWithdrawal(device="cpu")
    with pytest.raises(NotImplementedError, match="generative form"):
        model.loglikelihood([])
