"""A second question in the same conversation, against greedy decoding that reads everything anew for each token."""

import json
from itertools import islice

import pytest
import torch

from vtw_demo.__main__ import main
from vtw_demo.embedded.scenes import draw
from vtw_demo.evaluation.second_questions import ask_pairs, figures, markdown, pairs
from vtw_demo.measurements.flops import prefill_flops
from vtw_demo.withdrawal.withdraw import withdraw

LAYERS = (13, 4)
OF = {"model": "embedded", "seed": 3}


@pytest.fixture(scope="module")
def asked():
    return list(pairs(2, 3))


@pytest.fixture(scope="module")
def answered(vlm, asked, tmp_path_factory):
    """The rows, and the file that they were kept in."""
    file = tmp_path_factory.mktemp("second") / "new" / "second-questions.jsonl"
    return ask_pairs(vlm, asked, LAYERS, file, OF), file


@pytest.fixture
def file(answered, tmp_path):
    """A copy of that file, which a test may change."""
    copy = tmp_path / "second-questions.jsonl"
    copy.write_bytes(answered[1].read_bytes())
    return copy


@pytest.fixture
def generated(vlm, monkeypatch):
    """What the model is asked to generate from, as it comes."""
    seen, generate = [], type(vlm).generate
    monkeypatch.setattr(type(vlm), "generate", lambda self, **given: seen.append(given) or generate(self, **given))
    return seen


def greedy(vlm, inputs, layer):
    """The answer, each token of it from a pass over everything, without a KV cache."""
    inputs, said = dict(inputs), []
    with torch.inference_mode(), withdraw(vlm.model, layer):
        while len(said) < 16 and not set(said) & set(vlm.ends):
            token = vlm.model(**inputs, use_cache=False).logits[:, -1:].argmax(-1)
            said.append(token.item())
            inputs["input_ids"] = torch.cat([inputs["input_ids"], token], 1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            inputs.pop("mm_token_type_ids", None)
    return said


def test_pairs_ask_two_things_of_one_scene(asked):
    many = list(pairs(40, 3))
    assert many[:2] == asked
    assert next(pairs(1, 4)) != asked[0]
    assert [pair.name for pair in many] == [f"scene {number}" for number in range(40)]
    for pair in many:
        assert len(pair.scene.objects) >= 2
        assert pair.first.kind != pair.second.kind
        assert pair.first.answer != pair.second.answer
    assert len({pair.second.kind for pair in many}) > 5


def test_answers_are_those_of_passes_over_everything(vlm, asked, answered):
    rows, _ = answered
    assert [(row["name"], row["K"]) for row in rows] == [(pair.name, layer) for pair in asked for layer in LAYERS]
    by_place = iter(rows)
    for pair in asked:
        for row in islice(by_place, len(LAYERS)):
            first, second = (vlm.prompt(draw(pair.scene), one.text) for one in (pair.first, pair.second))
            said = greedy(vlm, first.inputs, row["K"])
            conversation = vlm.continued(first, said, pair.second.text)
            assert row["first_said"] == vlm.decode(said)
            assert row["alone"] == vlm.decode(greedy(vlm, second.inputs, row["K"]))
            anew = vlm.decode(greedy(vlm, conversation.inputs, row["K"]))
            assert (row["kept"], row["anew"]) == (anew, anew)
            assert row["anew_full"] == vlm.decode(greedy(vlm, conversation.inputs, vlm.layers))
            size = (conversation.length, conversation.visual_tokens)
            assert row["anew_flops"] == prefill_flops(vlm.model.config, *size, row["K"])
            assert 0 < row["kept_flops"] < row["anew_flops"] <= row["anew_full_flops"]
            assert (row["first"], row["second"]) == (
                [pair.first.text, pair.first.answer],
                [pair.second.text, pair.second.answer],
            )


def test_some_answers_differ(answered):
    """Else the passes above would tell no way from another."""
    rows, _ = answered
    assert any(row["kept"] != row["anew_full"] for row in rows)
    assert any(row["kept"] != row["alone"] for row in rows)
    assert any(row["first_said"] != row["first"][1] for row in rows)


def test_what_was_answered_is_kept(vlm, asked, answered, file, generated):
    rows, _ = answered
    before = file.read_bytes()
    assert ask_pairs(vlm, asked, LAYERS, file, OF) == rows
    assert not generated
    assert [json.loads(line)["name"] for line in file.read_text().splitlines() if line] == ["scene 0", "scene 1"]
    assert file.read_bytes().startswith(before)


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_half_a_line_of_a_killed_run_is_asked_again(vlm, asked, answered, file, generated, cut):
    rows, _ = answered
    file.write_bytes(file.read_bytes().rstrip()[:-cut])
    assert ask_pairs(vlm, asked, LAYERS, file, OF) == rows
    assert {inputs["input_ids"].shape[0] for inputs in generated} == {1}
    assert generated
    generated.clear()
    assert ask_pairs(vlm, asked, LAYERS, file, OF) == rows
    assert not generated


def test_answers_of_another_run_are_not_taken(vlm, asked, file, generated):
    rows = ask_pairs(vlm, asked[:1], [8], file, {**OF, "layers": [8]})
    assert [row["K"] for row in rows] == [8]
    assert generated


def made(name, layer, said, right="red", again=False):
    """A row whose first answer is right, and whose four second answers are `said`."""
    ways = dict(zip(("kept", "anew", "anew_full", "alone"), said, strict=True))
    flops = {"kept_flops": 5, "anew_flops": 50, "anew_full_flops": 100}
    first = said[0] if again else "7"
    return {"name": name, "K": layer, "first": ["How many?", first], "second": ["Which?", right], "first_said": first,
            **ways, **flops}  # fmt: skip


def test_figures_are_means_by_layer():
    rows = [
        made("a", 13, ("red", "red", "red", "red")),
        made("a", 8, ("red", "red", "red", "Red.")),
        made("b", 13, ("blue", "red", "red", "red")),
        made("b", 8, ("blue", "blue", "green", "red"), again=True),
    ]
    full, at_8 = figures(rows, [13, 8], seed=0)
    assert (full["K"], at_8["K"]) == (13, 8)
    means = {name: one["mean"] for name, one in at_8.items() if name != "K"}
    assert means == pytest.approx({
        "first right": 1.0, "kept": 0.5, "anew": 0.5, "anew_full": 0.5, "alone": 1.0, "kept = anew": 1.0,
        "kept = anew_full": 0.5, "first answer again": 0.5, "kept FLOPs": 0.05, "anew FLOPs": 0.5,
    })  # fmt: skip
    assert full["kept = anew"]["mean"] == 0.5
    assert full["first answer again"]["mean"] == 0
    assert (at_8["kept"]["low"], at_8["kept"]["high"]) == (0, 1)
    head, _, *lines = markdown([full, at_8], 13).splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["| full", "| 8"]
    assert dict(zip(head.split(" | "), lines[1].split(" | "), strict=True))["kept"] == "50.0 % (0.0 to 100.0)"


def test_the_command_writes_and_prints_them(vlm, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vtw_demo.evaluation.command.load_model", lambda options: vlm)
    given = ["evaluate", "--second-questions", "1", "--layers", "8", "13", "--seed", "3", "--out", str(tmp_path)]
    assert main(given) == 0
    shown, result = capsys.readouterr().out, json.loads((tmp_path / "second-questions.json").read_text())
    assert (result["layers"], result["pairs"]) == ([13, 8], 1)
    assert result["figures"] == figures(result["answers"], [13, 8], 3)
    assert markdown(result["figures"], 13) in shown
    assert {"machine", "date", "revision"} <= result.keys()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["0"], "At least 1 sample is needed; 0 were asked for"),
        (["1", "--layers", "14"], "Layers go from 1 to 13, the number of decoder layers; this is '14'"),
        (["1", "--data", "scenes"], "--second-questions asks pairs of its own: leave out --data"),
        (["1", "--way-layers", "8"], "--second-questions asks pairs of its own: leave out --way-layers"),
    ],
)
def test_what_makes_no_sense_is_refused(vlm, tmp_path, capsys, monkeypatch, given, said):
    monkeypatch.setattr("vtw_demo.evaluation.command.load_model", lambda options: vlm)
    assert main(["evaluate", "--second-questions", *given, "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
