"""What strangers' files hold, read alike by `calibrate` and `evaluate`."""

import codecs
import csv
import io
import json
import subprocess
import sys

import pytest
from PIL import Image

from vtw_demo.comparison.samples import read_samples
from vtw_demo.evaluation.data import Columns, read_data

ASKED = ("What colour?", "Größe, in m²?", "色は？")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """It has a picture, and isn't where the process is."""
    Image.new("RGB", (20, 10), "red").save(tmp_path / "red.png")
    monkeypatch.chdir("/")
    return tmp_path


def row(question="What colour?", **changes):
    return {"image": "red.png", "question": question, "answer": "red"} | changes


def write(file, *rows, encoding="utf-8", newline="\n"):
    lines = (r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows)
    file.write_bytes(newline.join(lines).encode(encoding, "surrogatepass"))
    return file


def cells(*rows, **options):
    written = io.StringIO(newline="")
    csv.writer(written, **options).writerows(rows)
    return written.getvalue()


def read(file, columns=None):
    """The questions and the bad rows, which are the same for both readers."""
    samples, bad = read_samples(file, 99, columns=columns)
    data, skipped = read_data(str(file), columns or Columns())
    assert [sample.question for sample in samples] == [sample.question for sample in data.samples]
    assert [sample.name for sample in samples] == [sample.name for sample in data.samples]
    assert bad == skipped
    assert all(sample.open().getpixel((0, 0)) == (255, 0, 0) for sample in data.samples)
    return [sample.question for sample in samples], list(bad)


TEXTS = {
    ".jsonl": "\n".join(json.dumps(row(asked), ensure_ascii=False) for asked in ASKED),
    ".json": json.dumps([row(asked) for asked in ASKED], ensure_ascii=False, indent=1),
    ".csv": cells(["image", "question", "answer"], *(["red.png", asked, "red"] for asked in ASKED)),
    ".tsv": cells(["image", "question", "answer"], *(["red.png", asked, "red"] for asked in ASKED), delimiter="\t"),
}


@pytest.mark.parametrize("suffix", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be-bom", "utf-16-le"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_every_format_in_every_encoding(folder, suffix, encoding, newline):
    text = TEXTS[suffix].replace("\r\n", "\n").replace("\n", newline)
    content = codecs.BOM_UTF16_BE + text.encode("utf-16-be") if "bom" in encoding else text.encode(encoding)
    (folder / f"data{suffix}").write_bytes(content)
    assert read(folder / f"data{suffix}") == (list(ASKED), [])
    assert read(folder) == (list(ASKED), [])


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".CSV"])
def test_the_header_says_what_separates_cells(folder, separator, suffix):
    rows = [["Question", " image", "answer, if any"], ["One, two; or\tthree?", "red.png", "red"]]
    (folder / f"data{suffix}").write_bytes(cells(*rows, delimiter=separator).encode())
    columns = Columns(answer="answer, if any")
    assert read(folder / f"data{suffix}", columns) == (["One, two; or\tthree?"], [])


def test_a_comma_in_a_file_of_semicolons_needs_no_quotes(folder):
    file = write(folder / "data.csv", "image;question;answer", "red.png;What colour, please?;red", "red.png;a;b;c")
    questions, bad = read(file)
    assert questions == ["What colour, please?"]
    assert bad == ["data.csv, line 3: has more cells than the header: put a text that holds a semicolon into quotes"]


def test_what_spreadsheets_put_before_the_header_is_no_row(folder):
    for before in ("sep=;", "SEP=;", "", ";;"):
        assert read(write(folder / "data.csv", before, "image;question;answer", "red.png;What?;red"))[0] == ["What?"]


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\v", "\f", "\x1c", "\x1e"])
def test_separators_inside_a_text_end_no_row(folder, end):
    asked = f"What colour?{end}In one word."
    for suffix, lines in (
        ("jsonl", [row(asked), row("Plain?")]),
        ("csv", ["image,question,answer", f"red.png,{asked},red", "red.png,Plain?,red"]),
        ("tsv", ["image\tquestion\tanswer", f"red.png\t{asked}\tred", "red.png\tPlain?\tred"]),
    ):
        if suffix == "jsonl" and end < " ":
            lines[0] = json.dumps(lines[0])
        questions, bad = read(write(folder / f"data.{suffix}", *lines))
        assert ([asked.split() for asked in questions], bad) == ([asked.split(), ["Plain?"]], [])


def test_bad_lines_of_csv_are_named_and_the_rest_is_read(folder):
    lines = (
        "image,question,answer",
        "red.png,What colour, please?,red",
        'red.png,"What" colour?,red',
        'red.png,"Red,',
        'or blue?",red',
        "",
        ",,",
        "red.png,What?,red",
        'red.png,"Unfinished,red',
        "red.png,Last?,red",
        "red.png",
    )
    questions, bad = read(write(folder / "data.csv", *lines))
    assert questions == ["Red,\nor blue?", "What?", "Last?"]
    assert [one.partition(": ")[0] for one in bad] == [f"data.csv, line {number}" for number in (2, 3, 9, 11)]
    assert "put a text that holds a comma into quotes" in bad[0]
    assert "no valid CSV" in bad[1]
    assert "question is missing" in bad[3]


def test_rows_in_json(folder):
    rows = [row("One?"), 5, None, [], row("Four?")]
    questions, bad = read(write(folder / "data.json", json.dumps(rows)))
    assert questions == ["One?", "Four?"]
    assert bad == [f"data.json, row {number}: must be a JSON object" for number in (2, 3, 4)]
    for whole in ({"version": 1, "data": [row("In it?")]}, row("In it?", answer=[{"answer": "red"}]), [row("In it?")]):
        assert read(write(folder / "data.json", json.dumps(whole, indent=2))) == (["In it?"], [])
    assert read(write(folder / "data.json", row("One?"), row("Two?"))) == (["One?", "Two?"], [])
    assert read(write(folder / "data.jsonl", json.dumps([row("One?")], indent=2))) == (["One?"], [])


def test_what_is_no_row_has_a_short_reason(folder):
    rows = ('"a text"', "9" * 5000, "[" * 20_000, "null", "{broken", row(question=[7] * 999), row(question="Good?"))
    questions, bad = read(write(folder / "data.jsonl", *rows))
    assert questions == ["Good?"]
    assert [one.partition(":")[0] for one in bad] == [f"data.jsonl, line {number}" for number in range(1, 7)]
    assert all(len(one) < 200 for one in bad)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.csv", "", "is empty"),
        ("blank.jsonl", "\n \n", "is empty"),
        ("mark.json", "\ufeff", "is empty"),
        ("header.csv", "image,question,answer\n", "has no row that can be used"),
        ("header.tsv", "image\tquestion\n\n\t\n", "has no row that can be used"),
        ("array.json", "[]", "has no row that can be used"),
        ("broken.json", "[{", "is no valid JSON: "),
        ("quoted.csv", '"image,question\n', "has a header that is no valid CSV"),
        ("twice.csv", "image,question,question\nred.png,a,b", "has several columns called 'question'"),
        ("data.xlsx", "PK", "must be a .jsonl"),
    ],
)
def test_files_without_rows_are_refused_in_a_sentence(folder, name, content, said):
    (folder / name).write_text(content, encoding="utf-8")
    for reader in (lambda: read_samples(folder / name, 9), lambda: read_data(str(folder / name), Columns())):
        with pytest.raises(ValueError, match=said) as told:
            reader()
        assert len(str(told.value)) < 300


def test_bytes_that_are_no_text_are_told_of_their_row_or_file(folder):
    for encoding in ("latin-1", "utf-8"):
        rows = ("image,question,answer", "red.png,Größe?,red", "red.png,Which \ud83d?,red", "red.png,What?,red")
        content = "\n".join(rows).encode(encoding, "replace" if encoding == "latin-1" else "surrogatepass")
        (folder / "data.csv").write_bytes(content)
        questions, bad = read(folder / "data.csv")
        assert questions[-1] == "What?"
        assert len(bad) == 1
        assert f"line {2 if encoding == 'latin-1' else 3}: question is not text in UTF-8" in bad[0]
    (folder / "data.csv").write_bytes("image,question\n".encode("utf-16") + b"\n")
    with pytest.raises(ValueError, match="is not text in UTF-8 or UTF-16"):
        read_samples(folder / "data.csv", 9)


def test_the_file_of_a_folder(folder):
    write(folder / "settings.json", "{}")
    with pytest.raises(ValueError, match="has no row that can be used"):
        read_samples(folder, 9)
    write(folder / "._data.csv", "hidden")
    write(folder / "one.csv", "image,question,answer", "red.png,One?,red")
    assert read(folder)[0] == ["One?"]
    write(folder / "two.jsonl", row("Two?"))
    with pytest.raises(ValueError, match=r"it holds one\.csv, two\.jsonl\. Name the file itself"):
        read_samples(folder, 9)
    write(folder / "metadata.jsonl", {"file_name": "red.png", "text": "Listed?", "label": "red"})
    assert read(folder)[0] == ["Listed?"]


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets")


def test_sets_that_datasets_saved(folder, datasets):
    content = (folder / "red.png").read_bytes()
    columns = {"question": list(ASKED), "answer": ["red"] * 3}
    pictures = {
        "bytes": [{"bytes": content, "path": None}] * 3,
        "path": [{"bytes": None, "path": "red.png"}] * 3,
        "text": ["red.png"] * 3,
    }
    for kind, of_kind in pictures.items():
        table = datasets.Dataset.from_dict({"image": of_kind, **columns})
        table.to_parquet(str(folder / f"{kind}.parquet"))
        assert read(folder / f"{kind}.parquet") == (list(ASKED), [])
    decoded = datasets.Dataset.from_dict({"image": pictures["bytes"], **columns}).cast_column("image", datasets.Image())
    decoded.to_parquet(str(folder / "decoded.parquet"))
    assert read(folder / "decoded.parquet") == (list(ASKED), [])
    table.save_to_disk(str(folder / "saved"))
    (folder / "saved" / "red.png").write_bytes(content)
    assert read(folder / "saved") == (list(ASKED), [])
    splits = datasets.DatasetDict({"train": table.select([0]), "test": table.select([1, 2])})
    splits.save_to_disk(str(folder / "splits"))
    (folder / "splits" / "red.png").write_bytes(content)
    assert [sample.question for sample in read_samples(folder / "splits", 9)[0]] == list(ASKED[:1])
    assert len(read_data(str(folder / "splits"), Columns())[0].samples) == 2
    with pytest.raises(ValueError, match="no split 'dev'; it has train, test"):
        read_samples(folder / "splits", 9, split="dev")


def test_labels_of_a_set_are_read_by_their_names(folder, datasets):
    table = datasets.Dataset.from_dict({"image": ["red.png"] * 2, "question": ["A?", "B?"], "label": [1, 0]})
    table = table.cast_column("label", datasets.ClassLabel(names=["blue", "red"]))
    table.to_parquet(str(folder / "data.parquet"))
    data, _ = read_data(str(folder / "data.parquet"), Columns())
    assert [sample.references for sample in data.samples] == [("red",), ("blue",)]


def test_gaps_of_pandas_are_missing(folder):
    pandas, _ = pytest.importorskip("pandas"), pytest.importorskip("datasets")
    table = pandas.DataFrame(
        [row("A?", answer=3), row(None, answer=4), row("C?", answer=None), row("D?", answer=5, image=None)]
    )
    table.to_parquet(folder / "data.parquet")
    data, bad = read_data(str(folder / "data.parquet"), Columns())
    assert [sample.references for sample in data.samples] == [("3",)]
    assert bad == ("row 1: question is missing", "row 2: answer is missing", "row 3: image is missing")


def test_without_datasets_text_is_read_and_the_rest_names_it(folder):
    write(folder / "data.jsonl", row())
    write(folder / "data.parquet", "PAR1")
    asked = (
        "import sys; sys.modules['datasets'] = sys.modules['pyarrow'] = sys.modules['pandas'] = None\n"
        "from vtw_demo.comparison.samples import read_samples\n"
        "print(len(read_samples(sys.argv[1] + '/data.jsonl', 9)[0]))\n"
        "read_samples(sys.argv[1] + '/data.parquet', 9)"
    )
    root = __file__.rpartition("/tests/")[0]
    ran = subprocess.run([sys.executable, "-c", asked, str(folder)], cwd=root, capture_output=True, text=True)
    assert ran.stdout == "1\n"
    assert "The package datasets isn't installed: pip install datasets" in ran.stderr.splitlines()[-1]
