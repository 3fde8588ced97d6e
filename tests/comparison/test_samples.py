import json
import random
from dataclasses import replace

import pytest
from PIL import Image

from vtw_demo.comparison.data_rows import DataSample
from vtw_demo.comparison.samples import DESCRIPTION_TOKENS, Sample, askable, embedded_samples, read_samples
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
        ("data.jsonl, line 1", "What color is it?", (255, 0, 0)),
        ("data.jsonl, line 3", "Größe?", (0, 0, 255)),
    ]
    assert bad == ()
    assert [sample.answer_tokens for sample in samples] == [1, 1]
    assert [sample.answer_tokens for sample in read_samples(file, 20, answer_tokens=7)[0]] == [7, 7]


def test_csv_as_spreadsheets_write_it(folder):
    file = folder / "data.csv"
    file.write_bytes('\ufeffquestion,image\r\n"Red,\nor blue?",red.png\r\nWhat?,blue.png\r\n'.encode())
    samples, bad = read_samples(file, 20)
    assert [(s.name, s.question) for s in samples] == [
        ("data.csv, line 2", "Red,\nor blue?"),
        ("data.csv, line 4", "What?"),
    ]
    assert bad == ()


def test_of_many_rows_some_are_chosen_in_their_order(folder):
    file = write_jsonl(folder / "data.jsonl", *(row(question=f"Question {n}?") for n in range(50)))
    names = [s.name for s in read_samples(file, 20)[0]]
    assert names == [s.name for s in read_samples(file, 20)[0]]
    lines = [int(name.split()[-1]) for name in names]
    assert len(set(lines)) == 20
    assert lines == sorted(lines) != list(range(1, 21))
    assert names != [s.name for s in read_samples(file, 20, seed=1)[0]]


def test_unreadable_data(folder):
    with pytest.raises(ValueError, match=r"There is no .*nothing\.csv"):
        read_samples(folder / "nothing.csv", 20)
    with pytest.raises(ValueError, match="At least 1 sample is needed; 0"):
        read_samples(folder / "nothing.csv", 0)
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


class Failing:
    """A processor that fails at pictures of 20 × 10 pixels."""

    def __init__(self, processor):
        self.processor = processor

    def __getattr__(self, name):
        return getattr(self.processor, name)

    def __call__(self, images, **options):
        if images[0][0].size == (20, 10):
            raise ZeroDivisionError("float division by zero " * 100)
        return self.processor(images=images, **options)


def test_what_a_model_cant_be_asked_is_left_out(small, folder, caplog):
    wide, square = Image.new("RGB", (20, 10)), Image.new("RGB", (20, 20))
    failing = replace(small, processor=Failing(small.processor))
    (folder / "gone.png").write_bytes((folder / "red.png").read_bytes())
    gone = DataSample("a gone one", "", "What?", (), lambda: Image.open(folder / "gone.png"))
    (folder / "gone.png").unlink()
    samples = [
        Sample("a wide one", wide, "What?"),
        Sample("a long one", square, "star " * 3000),
        Sample("a longer answer", square, "What?", 1900),
        Sample("a good one", square, "What?"),
    ]
    assert askable(failing, "mine", samples, strict=False) == (samples[-1],)
    kept = DataSample("kept", "", "What?", (), lambda: square)
    assert askable(failing, "mine", [gone, kept], strict=False, new_tokens=9) == (kept,)
    skipped = [record.getMessage() for record in caplog.records]
    assert [one.partition(":")[0] for one in skipped] == [
        f"skipped {name}" for name in ("a wide one", "a long one", "a longer answer", "a gone one")
    ]
    assert "ZeroDivisionError" in skipped[0]
    assert "context holds 2048" in skipped[1]
    assert all(len(one) < 400 for one in skipped)
    with pytest.raises(ValueError, match=r"mine has 3 bad rows: a wide one: .*--strict"):
        askable(failing, "mine", samples, strict=True)
    with pytest.raises(ValueError, match="mine has no row that can be used: a wide one: "):
        askable(failing, "mine", samples[:1], strict=False)
    with pytest.raises(ValueError, match="mine has no row that can be used"):
        askable(failing, "mine", [kept], strict=False, new_tokens=3000)
