"""The test split of easy-vqa is for evaluation only."""

import ast
from pathlib import Path

import vtw_demo.embedded
from vtw_demo.embedded.easy_vqa_data import easy_vqa_pictures
from vtw_demo.evaluation.data import easy_vqa_test, picture_fingerprint

FOLDER = Path(vtw_demo.embedded.__file__).parent


def test_no_picture_of_the_test_split_is_among_those_that_training_reads():
    read = {picture_fingerprint(pictured.picture()) for pictured in easy_vqa_pictures("train")}
    samples = {sample.name.partition(":")[0]: sample for sample in easy_vqa_test().samples}
    asked_about = {picture_fingerprint(sample.open()) for sample in samples.values()}
    assert (len(samples), len(asked_about)) == (1000, 1000)
    assert len(read) == 4000
    assert not read & asked_about


def test_training_reads_the_train_split_alone():
    splits, others = [], []
    for file in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            # It is called, or handed to `partial` with its arguments.
            said = [getattr(part, "id", getattr(part, "attr", part)) for part in (node.func, *node.args)]
            if "easy_vqa_pictures" in said:
                splits.append(said[said.index("easy_vqa_pictures") + 1].value)
            elif any("get_test" in name for name in said if isinstance(name, str)):
                others.append(file.name)
    assert set(splits) == {"train"}
    assert set(others) == {"easy_vqa_data.py"}
