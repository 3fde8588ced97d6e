import json
import random

import pytest
from PIL import Image

from vtw_demo.comparison.samples import DESCRIPTION_TOKENS, Sample, embedded_samples, read_samples
from vtw_demo.embedded.questions import describe
from vtw_demo.embedded.scenes import random_scene

DESCRIBE = ("Describe the picture.", "What do you see?", "What is in the picture?", "Describe the scene.")


@pytest.fixture
def folder(tmp_path):
    for colour in ("red", "green", "blue"):
        Image.new("RGB", (20, 10), colour).save(tmp_path / f"{colour}.png")
    (tmp_path / "notes.png").write_text("not a picture")
    return tmp_path


def write_jsonl(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def row(image="red.png", question="What color is it?", **more):
    return {"image": image, "question": question, **more}


def test_samples_that_need_no_file_are_the_same_each_time():
    samples = embedded_samples(20)
    assert [s.fingerprint for s in samples] == [s.fingerprint for s in embedded_samples(20)]
    assert len({s.fingerprint for s in samples}) == 20
    assert [s.fingerprint for s in samples] != [s.fingerprint for s in embedded_samples(20, seed=1)]
    # easy-vqa is installed with the tests.
    assert sum(s.name.startswith("easy-vqa") for s in samples) == 10


def test_every_fourth_is_a_description_and_measured_whole(vlm):
    samples = embedded_samples(20)
    assert [s.answer_tokens for s in samples] == [1, 1, DESCRIPTION_TOKENS, 1] * 5
    assert all(s.question in DESCRIBE for s in samples[2::4])
    assert not any(s.question in DESCRIBE for s in samples if s.answer_tokens == 1)
    generator = random.Random(0)
    longest = max((describe(random_scene(generator, 6)) for _ in range(50)), key=len)
    assert len(vlm.processor.tokenizer(longest)["input_ids"]) < DESCRIPTION_TOKENS


def test_at_least_one_token_is_measured():
    with pytest.raises(ValueError, match="At least 1 token of the answer is measured; 0 were asked for"):
        Sample("a", Image.new("RGB", (2, 2)), "What?", 0)


def test_a_fingerprint_is_of_picture_and_question():
    red, blue = Image.new("RGB", (2, 2), "red"), Image.new("RGB", (2, 2), "blue")
    sample = Sample("a", red, "What?")
    assert sample.fingerprint == Sample("b", red, " What? ").fingerprint
    assert sample.fingerprint != Sample("a", red, "Why?").fingerprint
    assert sample.fingerprint != Sample("a", red, "What?", 2).fingerprint
    assert sample.fingerprint != Sample("a", blue, "What?").fingerprint
    assert sample.fingerprint != Sample("a", red.resize((4, 1)), "What?").fingerprint


@pytest.mark.parametrize("by_folder", [False, True])
def test_jsonl(folder, by_folder):
    file = write_jsonl(folder / "data.jsonl", row(), "", row("blue.png", "Größe?", id=7))
    samples, bad = read_samples(folder if by_folder else file, 20)
    assert [(s.name, s.question, s.picture.getpixel((0, 0))) for s in samples] == [
        ("data.jsonl:1", "What color is it?", (255, 0, 0)),
        ("data.jsonl:3", "Größe?", (0, 0, 255)),
    ]
    assert bad == ()
    assert [sample.answer_tokens for sample in samples] == [1, 1]
    assert [sample.answer_tokens for sample in read_samples(file, 20, answer_tokens=7)[0]] == [7, 7]


def test_csv_as_spreadsheets_write_it(folder):
    file = folder / "data.csv"
    file.write_bytes('\ufeffquestion,image\r\n"Red,\nor blue?",red.png\r\nWhat?,blue.png\r\n'.encode())
    samples, bad = read_samples(file, 20)
    assert [(s.name, s.question) for s in samples] == [("data.csv:3", "Red,\nor blue?"), ("data.csv:4", "What?")]
    assert bad == ()


BAD_ROWS = (
    row(),
    "{broken",
    row("missing.png"),
    row("notes.png"),
    row(question="  "),
    {"image": "red.png"},
    row(question=7),
    "[1, 2]",
    row("blue.png"),
)


def test_bad_rows_are_named_and_skipped(folder):
    samples, bad = read_samples(write_jsonl(folder / "data.jsonl", *BAD_ROWS), 20)
    assert [s.name for s in samples] == ["data.jsonl:1", "data.jsonl:9"]
    reasons = {int(entry.place.removeprefix("line ")): entry.reason for entry in bad}
    assert sorted(reasons) == [2, 3, 4, 5, 6, 7, 8]
    assert "no valid JSON" in reasons[2]
    assert "missing.png" in reasons[3]
    assert "not a picture" in reasons[4]
    assert (reasons[5], reasons[6]) == ("question is empty", "question is missing")
    assert "question must be text; this is 7" in reasons[7]
    assert "must be a JSON object" in reasons[8]
    assert str(bad[0]).startswith("line 2: ")


def test_strict_refuses_bad_rows(folder):
    with pytest.raises(ValueError, match=r"7 bad rows: line 2: no valid JSON.*line 8: must be a JSON object.*--strict"):
        read_samples(write_jsonl(folder / "data.jsonl", *BAD_ROWS), 20, strict=True)
    samples, bad = read_samples(write_jsonl(folder / "data.jsonl", row()), 20, strict=True)
    assert (len(samples), bad) == (1, ())


def test_of_many_rows_some_are_chosen_in_their_order(folder):
    file = write_jsonl(folder / "data.jsonl", *(row(question=f"Question {n}?") for n in range(50)))
    names = [s.name for s in read_samples(file, 20)[0]]
    assert names == [s.name for s in read_samples(file, 20)[0]]
    lines = [int(name.split(":")[1]) for name in names]
    assert len(set(lines)) == 20
    assert lines == sorted(lines) != list(range(1, 21))
    assert names != [s.name for s in read_samples(file, 20, seed=1)[0]]


def test_unreadable_data(folder, tmp_path):
    cases = [
        (folder / "nothing", "There is no"),
        (folder / "red.png", r"must be a \.jsonl or \.csv or \.json file"),
        (folder, r"or a folder that holds one \.jsonl or \.csv file"),
    ]
    for path, message in cases:
        with pytest.raises(ValueError, match=message):
            read_samples(path, 20)
    latin = folder / "latin.csv"
    latin.write_bytes("image,question\nred.png,Größe?\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not text in UTF-8"):
        read_samples(latin, 20)
    latin.write_text("picture,question\nred.png,What?\n")
    with pytest.raises(
        ValueError,
        match=r"no column 'image'; it has picture, question\. Its header must",
    ):
        read_samples(latin, 20)
    latin.write_text('image,question\nred.png,"What?\n')
    with pytest.raises(ValueError, match="no valid CSV at line"):
        read_samples(latin, 20)
    latin.write_text("image,question\n")
    with pytest.raises(ValueError, match="no row that can be used"):
        read_samples(latin, 20)
    with pytest.raises(ValueError, match=r"no row that can be used: line 1: there is no picture .*gone\.png"):
        read_samples(write_jsonl(folder / "a.jsonl", row("gone.png")), 20)
    with pytest.raises(ValueError, match=r"it holds a\.jsonl, latin\.csv\. Name the file itself"):
        read_samples(folder, 20)
    with pytest.raises(ValueError, match="At least 1 sample is needed; 0"):
        read_samples(latin, 0)
    with pytest.raises(ValueError, match="At least 1 sample"):
        embedded_samples(0)


def test_data_never_raises_anything_but_a_sentence(folder):
    generator = random.Random(0)
    for suffix in (".csv", ".jsonl"):
        for _ in range(60):
            content = bytes(generator.choice(b'{}[]",:\n\r \\ aimagequestionredpng.\x00\xff') for _ in range(60))
            file = folder / f"fuzz{suffix}"
            file.write_bytes(content)
            with pytest.raises(ValueError, match=r"\w"):
                read_samples(file, 20)
