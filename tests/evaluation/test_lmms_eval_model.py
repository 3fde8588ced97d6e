"""The model of lmms-eval, in the environment that has it: see README."""

import json
import os
import random
import subprocess
import sys

import pytest

pytest.importorskip("lmms_eval")

import datasets
from datasets import Dataset, Features, Value
from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model
from lmms_eval.models.registry_v2 import ModelRegistryV2

from vtw_demo.embedded.scenes import draw, random_scene
from vtw_demo.evaluation.lmms_eval_model import VisualTokensWithdrawal
from vtw_demo.models.loading import load
from vtw_demo.withdrawal.withdraw import withdraw

QUESTION = "What do you see?"


def asked(picture, questions, **options):
    """The answers of a small task about one picture."""
    model = VisualTokensWithdrawal(device="cpu", **options)
    model.task_dict = {"task": {"test": [{"pictures": [picture]}]}}
    given = {"max_new_tokens": 24, "until": ["\n\n"]}
    where = {"task": "task", "doc_id": 0, "repeats": 1}
    requests = [
        Instance("generate_until", (text, given, lambda shown: shown["pictures"], 0, "task", "test"), number, where)
        for number, text in enumerate(questions)
    ]
    return model.generate_until(requests)


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


TASK = """
task: shapes
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function functions.pictures
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{max_new_tokens: 16, until: ["\\n"]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.mark.parametrize("layer", [9, 13])
def test_a_small_task_of_the_harness(tmp_path, layer):
    questions = []
    for number in range(6):
        scene = random_scene(random.Random(number), 1)
        question = f"What color is the {scene.objects[0].shape}?"
        questions.append({"image": draw(scene), "question": question, "answer": scene.objects[0].colour})
    features = Features({"image": datasets.Image(), "question": Value("string"), "answer": Value("string")})
    Dataset.from_list(questions, features=features).to_parquet(tmp_path / "data.parquet")
    (tmp_path / "shapes.yaml").write_text(TASK.format(data=tmp_path / "data.parquet"))
    (tmp_path / "functions.py").write_text("def pictures(row):\n    return [row['image'].convert('RGB')]\n")
    asked = [
        *("--model", "vtw", "--model_args", f"pretrained=embedded,layer={layer},device=cpu", "--batch_size", "4"),
        *("--tasks", "shapes", "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "lmms_eval", *asked, "--log_samples"], capture_output=True, text=True, timeout=200,
        env=os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [result] = (tmp_path / "out").rglob("*results.json")
    found = json.loads(result.read_text())["results"]["shapes"]
    vlm, right = load("embedded", device="cpu"), 0
    for row in questions:
        inputs = vlm.prepare(row["image"], row["question"])
        with withdraw(vlm.model, layer):
            tokens = vlm.generate(**inputs, max_new_tokens=16)[0, inputs["input_ids"].shape[1] :]
        right += vlm.decode(tokens.tolist()) == row["answer"]
    assert found["exact_match,none"] == pytest.approx(right / len(questions))
    assert right >= 4


def test_what_it_cannot_do_is_said(picture):
    with pytest.raises(ValueError, match="14"):
        VisualTokensWithdrawal(layer=14, device="cpu")
    with pytest.raises(ValueError, match="at least 1 question"):
        VisualTokensWithdrawal(batch_size=0, device="cpu")
    with pytest.raises(ValueError, match="vtw takes no conv_template"):
        VisualTokensWithdrawal(conv_template="vicuna", device="cpu")
    model = VisualTokensWithdrawal(device="cpu")
    with pytest.raises(NotImplementedError, match="generative form"):
        model.loglikelihood([])
