"""What strangers' files hold, read alike by `calibrate` and `evaluate`."""

import io
import json

import pytest
from PIL import Image

from vtw_demo.comparison.data_files import find_file
from vtw_demo.comparison.samples import read_samples
from vtw_demo.evaluation.data import Columns, read_data


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (20, 10), "red").save(tmp_path / "red.png")
    return tmp_path


def row(question="What colour?", **changes):
    return {"image": "red.png", "question": question, "answer": "red"} | changes


def write(file, *rows):
    file.write_text("\n".join(r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows), newline="")
    return file


def read(file):
    """The questions and the bad rows, which are the same for both readers."""
    samples, bad = read_samples(file, 9)
    data, skipped = read_data(str(file), Columns())
    assert [sample.question for sample in samples] == [sample.question for sample in data.samples]
    assert [sample.name for sample in samples] == [sample.name for sample in data.samples]
    assert [str(one) for one in bad] == [str(one) for one in skipped]
    return [sample.question for sample in samples], [str(one) for one in bad]


def test_separators_inside_a_text_end_no_line(folder):
    asked = ["What colour?\u2028In one word.", "Next\u0085line?", "Plain?"]
    questions, bad = read(write(folder / "data.jsonl", *map(row, asked)))
    assert (len(questions), bad) == (3, [])
    assert "\u2028" in questions[0]
    questions, bad = read(write(folder / "data.csv", "image,question,answer", f"red.png,{asked[0]},red"))
    assert (questions, bad) == ([asked[0]], [])


def test_a_comma_without_quotes_is_told(folder):
    lines = ("image,question,answer", "red.png,What colour, please?,red", "red.png,What?,red")
    questions, bad = read(write(folder / "data.csv", *lines))
    assert questions == ["What?"]
    assert bad == ["line 2: has more cells than the header: put a text that holds a comma into quotes"]


def test_half_a_character_is_left_out_and_a_question_of_nothing_seen_is_empty(folder):
    half = '{"image": "red.png", "question": "Which \\ud83d", "answer": "red \\ud83d", "kind": "\\ud83d"}'
    questions, bad = read(write(folder / "data.jsonl", half, row("\u200b")))
    assert (questions, bad) == (["Which"], ["line 2: question is empty"])
    sample = read_data(str(folder), Columns())[0].samples[0]
    assert (sample.references, sample.kind) == (("red ",), "")


def test_a_json_array_with_pictures_beside_it(folder, monkeypatch):
    monkeypatch.chdir("/")
    questions, bad = read(write(folder / "data.json", json.dumps([row("One?"), 5, row("Three?")])))
    assert (questions, bad) == (["One?", "Three?"], ["row 2: must be a JSON object"])
    assert find_file(folder) is None  # where a folder has one, it must be named
    assert read(write(folder / "lines.json", row("One?"), row("Two?"))) == (["One?", "Two?"], [])
    with pytest.raises(ValueError, match="is no valid JSON: "):
        read_samples(write(folder / "broken.json", "[{"), 9)


def test_what_is_no_row_has_a_short_reason(folder):
    rows = (
        '"a text"',
        "9" * 5000,
        "[" * 20_000,
        row(image="data:image/png;base64," + "A" * 300_000),
        row(question=[7] * 999),
    )
    questions, bad = read(write(folder / "data.jsonl", *rows, row("Good?")))
    assert questions == ["Good?"]
    assert [one.partition(":")[0] for one in bad] == [f"line {number}" for number in range(1, 6)]
    assert "must be a JSON object" in bad[0]
    assert all(len(one) < 200 for one in bad)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_pictures_are_upright_and_on_white_wherever_they_are_stored(folder, kind):
    clear, turned = Image.new("RGBA", (64, 64)), Image.new("RGB", (96, 64), "red")
    turned.paste("blue", (48, 0, 96, 64))
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, picture, options in (
        ("clear", clear, {"format": "PNG"}),
        ("turned", turned, {"format": "JPEG", "exif": exif}),
    ):
        content = io.BytesIO()
        picture.save(content, **options)
        if kind == "parquet":
            datasets = pytest.importorskip("datasets")
            cells = [{"bytes": content.getvalue(), "path": None}]
            table = datasets.Dataset.from_dict({"image": cells, "question": ["What?"], "answer": ["x"]})
            table.to_parquet(str(folder / f"{name}.parquet"))
        else:
            (folder / f"{name}.png").write_bytes(content.getvalue())
            write(folder / f"{name}.jsonl", row(image=f"{name}.png"))
    opened = {
        name: read_data(str(folder / f"{name}.{kind}"), Columns())[0].samples[0].open() for name in ("clear", "turned")
    }
    assert opened["clear"].getpixel((0, 0)) == (255, 255, 255)
    assert opened["turned"].size == (64, 96)
    assert opened["turned"].getpixel((32, 80))[2] > 200
