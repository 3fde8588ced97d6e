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
    assert [sample.name for sample in data.samples] == [f"data.jsonl, line {number}" for number in (1, 2, 3)]


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
