import json

import pytest
from PIL import Image

from vtw_demo.evaluation.data import Columns, read_data

COLOURS = ("red", "green", "blue")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    for colour in COLOURS:
        Image.new("RGB", (32, 32), colour).save(tmp_path / "pictures" / f"{colour}.png")
    return tmp_path


def write(folder, *rows, name="data.jsonl"):
    (folder / name).write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(folder)


def row(colour="red", **changes):
    return {"image": f"pictures/{colour}.png", "question": "What color?", "answer": colour} | changes


def test_folder_with_jsonl(folder):
    data, skipped = read_data(write(folder, *map(row, COLOURS)), Columns())
    assert not skipped
    assert [sample.references for sample in data.samples] == [("red",), ("green",), ("blue",)]
    assert [sample.open().getpixel((0, 0)) for sample in data.samples] == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]
    assert [sample.name for sample in data.samples] == ["data.jsonl:1", "data.jsonl:2", "data.jsonl:3"]


@pytest.mark.parametrize(
    ("answer", "references"),
    [
        (3, ("3",)),
        (True, ("yes",)),
        (["red", "crimson"], ("red", "crimson")),
        ([{"answer": "red"}, {"answer": "pink"}], ("red", "pink")),
    ],
)
def test_answers(folder, answer, references):
    data, _ = read_data(write(folder, row(answer=answer)), Columns())
    assert data.samples[0].references == references


def test_named_columns(folder):
    named = {"file": "pictures/red.png", "ask": "What?", "gold": "red", "type": "colour"}
    data, _ = read_data(write(folder, named), Columns("file", "ask", "gold", "type"))
    assert (data.samples[0].question, data.samples[0].kind) == ("What?", "colour")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{not JSON", "no valid JSON"),
        ("[1]", "must be a JSON object"),
        (row("gone"), "there is no picture"),
        (row(question=" "), "question is empty"),
        (row(answer=""), "answer: the answer is empty"),
        (row(answer=None), "answer: an answer must be"),
        (row(answer=[]), "answer: the answer is missing"),
        (row(image=5), "image must be a picture or the path of one; this is 5"),
        (row(image="data.jsonl"), "not a picture"),
    ],
)
def test_bad_rows_are_skipped_and_told(folder, bad, reason):
    data, skipped = read_data(write(folder, row(), bad, row("blue")), Columns())
    assert len(data.samples) == 2
    assert str(skipped[0]).startswith("line 2: ")
    assert reason in str(skipped[0])
    with pytest.raises(ValueError, match="no row that can be used"):
        read_data(write(folder, bad), Columns())


def test_so_many_by_seed(folder):
    where = write(folder, *[row(question=f"Number {number}?") for number in range(20)])
    chosen = [sample.name for sample in read_data(where, Columns(), 5)[0].samples]
    assert len(set(chosen)) == 5
    assert chosen == [sample.name for sample in read_data(where, Columns(), 5)[0].samples]
    assert chosen != [sample.name for sample in read_data(where, Columns(), 5, seed=1)[0].samples]


def test_csv_without_the_column(folder):
    write(folder, "image,question\npictures/red.png,What?", name="data.csv")
    with pytest.raises(ValueError, match=r"no column 'answer'.*--answer-column"):
        read_data(str(folder), Columns())
    write(folder, "image,question,label\npictures/red.png,What?,red", name="data.csv")
    data, _ = read_data(str(folder), Columns(answer="label"))
    assert data.samples[0].references == ("red",)


def test_two_files(folder):
    write(folder, row())
    write(folder, row(), name="other.jsonl")
    with pytest.raises(ValueError, match=r"holds data\.jsonl, other\.jsonl"):
        read_data(str(folder), Columns())


def test_set_of_datasets(folder):
    datasets = pytest.importorskip("datasets")
    pictures = [str(folder / "pictures" / f"{colour}.png") for colour in COLOURS]
    table = datasets.Dataset.from_dict({"pic": pictures, "ask": ["What color?"] * 3, "gold": list(COLOURS)})
    table = table.cast_column("pic", datasets.Image())
    columns = Columns("pic", "ask", "gold")
    table.save_to_disk(str(folder / "one"))
    datasets.DatasetDict({"train": table, "test": table.select([2])}).save_to_disk(str(folder / "splits"))
    table.to_parquet(str(folder / "set.parquet"))
    for name, found in (("one", 3), ("splits", 1), ("set.parquet", 3)):
        data, skipped = read_data(str(folder / name), columns)
        assert not skipped
        assert len(data.samples) == found
        assert data.samples[-1].open().getpixel((0, 0)) == (0, 0, 255)
    with pytest.raises(ValueError, match="no split 'dev'; it has train, test"):
        read_data(str(folder / "splits"), columns, split="dev")
    with pytest.raises(ValueError, match="no column 'image'; it has pic, ask, gold"):
        read_data(str(folder / "one"), Columns())
