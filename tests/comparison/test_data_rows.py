import base64
import io
import json
import math

import numpy as np
import pytest
from PIL import Image

from vtw_demo.comparison import data_rows
from vtw_demo.comparison.data_rows import Columns, references_of
from vtw_demo.comparison.samples import read_samples
from vtw_demo.evaluation.data import read_data

RED = (255, 0, 0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    Image.new("RGB", (20, 10), "red").save(tmp_path / "red.png")
    (tmp_path / "notes.png").write_text("not a picture")
    monkeypatch.chdir("/")
    return tmp_path


def row(question="What?", **changes):
    return {"image": "red.png", "question": question, "answer": "red"} | changes


def write(folder, *rows):
    (folder / "data.jsonl").write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(folder / "data.jsonl")


def read(folder, *rows, columns=None):
    """Question and answers of each row, and the bad ones."""
    data, bad = read_data(write(folder, *rows), columns or Columns())
    assert all(sample.open().getpixel((0, 0)) == RED for sample in data.samples)
    return [(sample.question, *sample.references) for sample in data.samples], list(bad)


def turns(asked, answered, *more):
    said = [{"from": "human", "value": asked}, {"from": "gpt", "value": answered}]
    return [*said, *({"from": speaker, "value": text} for speaker, text in more)]


def messages(asked, answered):
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": asked}] + (
        [] if answered is None else [{"role": "assistant", "content": answered}]
    )


@pytest.mark.parametrize("picture", ["image", "image_path", "img", "Picture", "file_name", "imagePath", "File Name"])
@pytest.mark.parametrize("question", ["question", "query", "text", "prompt", "Instruction"])
@pytest.mark.parametrize("answer", ["answer", "ANSWERS", "label", "gt", "ground_truth", "groundTruth", "response"])
def test_names_that_people_use(folder, picture, question, answer):
    assert read(folder, {picture: "red.png", question: "What?", answer: "red", "id": 7}) == ([("What?", "red")], [])


@pytest.mark.parametrize(
    "named",
    [
        {"conversations": turns("<image>\nWhat?", "red")},
        {"conversations": turns("What?\n<image>", "red", ("human", "Why?"), ("gpt", "Because."))},
        {"Conversations": turns("<image> <image>What?", "red")},
        {"messages": messages("What?", "red")},
        {
            "messages": messages(
                [{"type": "image"}, {"type": "text", "text": "What?"}], [{"type": "text", "text": "red"}]
            )
        },
        {"messages": messages("<image>What?", None), "answer": "red"},
        {"prompt": "<image>\nWhat?", "label": "red"},
    ],
)
def test_conversations(folder, named):
    assert read(folder, {"images": ["red.png"], **named}) == ([("What?", "red")], [])


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (json.dumps(turns("What?", "red")), "conversations must be a list of turns; this is"),
        (turns("<image>", "red"), "conversations is empty"),
        ([{"from": "gpt", "value": "red"}], "conversations is missing"),
        (turns("What?", None), "conversations is missing"),
        ([], "conversations must be text; this is []"),
        (turns(["What?"], "red"), "conversations is empty"),
    ],
)
def test_conversations_that_ask_nothing_are_bad_rows(folder, turns, reason):
    good = {"image": "red.png", "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "red"}]}
    found, bad = read(folder, good, {"image": "red.png", "conversations": turns})
    assert (found, len(bad)) == ([("Why?", "red")], 1)
    assert reason in bad[0]


def test_a_column_that_isnt_there_is_told_with_the_option(folder):
    file = write(folder, {"pic": "red.png", "ask": "What?", "gold": "red", "x" * 300_000: 1})
    with pytest.raises(ValueError, match=r"no column 'image'; it has pic, ask, gold, x.*--image-column") as told:
        read_samples(file, 9)
    assert len(str(told.value)) < 400
    with pytest.raises(ValueError, match=r"no column 'question'; it has .*--question-column"):
        read_samples(file, 9, columns=Columns("Pic"))
    with pytest.raises(ValueError, match=r"no column 'answer'; it has .*--answer-column"):
        read_data(file, Columns("pic", "ask"))
    with pytest.raises(ValueError, match=r"no column 'type'; it has .*--kind-column"):
        read_data(file, Columns("pic", "ask", "gold", "type"))
    found, bad = read(folder, {"pic": "red.png", "ask": "What?", "gold": "red"}, columns=Columns("PIC", "ask", "Gold"))
    assert (found, bad) == ([("What?", "red")], [])


def test_of_several_columns_the_usual_one_is_read_and_told_and_others_are_refused(folder, caplog):
    assert read(folder, row(text="Other?", label="blue", gt="green"))[0] == [("What?", "red")]
    assert "of question, text the question is read from question." in caplog.text
    assert "of answer, label, gt the answer is read from answer." in caplog.text
    for more in ({"query": "A?", "text": "B?"}, {"Question": "A?", "question": "B?"}):
        named = {"image": "red.png", "answer": "red", **more}
        with pytest.raises(ValueError, match=f"several columns.*the question: {', '.join(more)}.*--question-column"):
            read(folder, named)
        first = next(iter(more))
        assert read(folder, named, columns=Columns(question=first))[0] == [("A?", "red")]


BAD = {
    "a half pair in the question": (row("Which \ud83d?"), "question is not text in UTF-8"),
    "a half pair in the answer": (row(answer="red \udc00"), "answer is not text in UTF-8"),
    "a half pair in one of the answers": (row(answer=["red", "\ud83d"]), "answer is not text in UTF-8"),
    "a half pair in the kind": (row(kind="\ud83d"), "kind is not text in UTF-8"),
    "a half pair in the path": (row(image="\ud83d.png"), "image is not text in UTF-8"),
    "NaN asked": ('{"image": "red.png", "question": NaN, "answer": "red"}', "question is missing"),
    "NaN answered": ('{"image": "red.png", "question": "What?", "answer": NaN}', "answer is missing"),
    "NaN among the answers": ('{"image": "red.png", "question": "What?", "answer": ["red", NaN]}', "answer is missing"),
    "NaN shown": ('{"image": NaN, "question": "What?", "answer": "red"}', "image is missing"),
    "infinity": ('{"image": "red.png", "question": "What?", "answer": Infinity}', "answer must be text; this is inf"),
    "nothing": (row(""), "question is empty"),
    "spaces": (row("\u2003\u00a0\t\n"), "question is empty"),
    "zero width": (row("\u200b\u200d\ufeff\u2060"), "question is empty"),
    "control characters": (row("\x00\x07\x1b"), "question is empty"),
    "variation selectors": (row("\ufe0f\u034f"), "question is empty"),
    "fillers": (row("\u3164\u115f\u2800"), "question is empty"),
    "an answer of nothing visible": (row(answer="\u200b"), "answer is empty"),
    "a number": (row(7), "question must be text; this is 7"),
    "no answer": (row(answer=[]), "answer is missing"),
    "an answer of answers": (row(answer=[["red"]]), "answer must be text; this is ['red']"),
    "a long answer": (row(answer={"text": "A" * 300_000}), "answer is missing"),
    "a missing picture": (row(image="gone.png"), "There is no picture"),
    "what is no picture": (row(image="notes.png"), "not a picture"),
    "a path of spaces": (row(image="  "), "image is missing"),
    "two pictures": (row(image=["red.png", "red.png"]), "it has 2 pictures"),
    "no picture of a list": (row(image=[]), "image is missing"),
    "a number for a picture": (row(image=5), "image must be a picture or the path of one; this is 5"),
    "an address": (row(image="https://example.org/a.png"), "image must be a picture or the path of one"),
    "a long name": (row(image="a" * 4000), "can't be read: File name too long"),
    "base64 of nothing": (row(image="data:image/png;base64,"), "The picture's file is empty"),
    "base64 of no picture": (row(image="data:image/png;base64," + "A" * 300_000), "not a picture"),
    "no base64": (row(image="data:image/png;base64," + "é" * 300_000), "image is no picture in base64: 'data:image/p"),
    "a list": ([1], "must be a JSON object"),
    "null": ("null", "must be a JSON object"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_rows_are_named_with_their_line_and_reason(folder, kind):
    bad, reason = BAD[kind]
    found, told = read(folder, row("First?"), bad, row("Last?"))
    assert found == [("First?", "red"), ("Last?", "red")]
    assert len(told) == 1
    assert told[0].startswith("data.jsonl, line 2: ")
    assert reason in told[0]
    assert len(told[0]) < 300
    with pytest.raises(ValueError, match=r"has 1 bad row: data\.jsonl, line 2: .*--strict"):
        read_data(str(folder / "data.jsonl"), Columns(), strict=True)
    with pytest.raises(ValueError, match=r"has no row that can be used: data\.jsonl, (line|row) 1: "):
        read(folder, bad)


def encoded(picture, kind, **options):
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def test_pictures_in_base64(folder):
    noise = Image.effect_noise((90, 90), 90).convert("RGB")
    noise.putpixel((0, 0), RED)
    large = base64.b64encode(encoded(noise, "PNG")).decode()
    assert len(large) > 4096
    wrapped = "\n".join(large[start : start + 76] for start in range(0, len(large), 76))
    uris = (f"data:image/png;base64,{large}", f"DATA:;base64,{wrapped}", large, [f"data:image/png;base64,{large}"])
    small = base64.b64encode((folder / "red.png").read_bytes()).decode()
    found, bad = read(folder, *(row(image=uri) for uri in (*uris, f"data:image/png;base64,{small}")))
    assert (len(found), bad) == (5, [])


@pytest.mark.parametrize("kind", ["path", "base64", "parquet"])
def test_pictures_are_read_as_the_page_reads_them(folder, kind):
    clear, turned = Image.new("RGBA", (64, 64)), Image.new("RGB", (96, 64), "red")
    turned.paste("blue", (48, 0, 96, 64))
    deep = Image.fromarray(np.full((9, 9), 32768, np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    contents = [encoded(clear, "PNG"), encoded(turned, "JPEG", exif=exif), encoded(deep, "PNG")]
    if kind == "parquet":
        datasets = pytest.importorskip("datasets")
        cells = [{"bytes": content, "path": None} for content in contents]
        table = datasets.Dataset.from_dict({"image": cells, "question": ["What?"] * 3})
        table.cast_column("image", datasets.Image()).to_parquet(str(folder / "data.parquet"))
        samples, _ = read_samples(folder / "data.parquet", 9)
    else:
        rows = []
        for number, content in enumerate(contents):
            (folder / str(number)).write_bytes(content)
            uri = f"data:image/png;base64,{base64.b64encode(content).decode()}"
            rows.append(row(image=str(number) if kind == "path" else uri))
        samples, _ = read_samples(write(folder, *rows), 9)
    on_white, upright, grey = (sample.picture for sample in samples)
    assert on_white.getpixel((0, 0)) == (255, 255, 255)
    assert upright.size == (64, 96)
    assert upright.getpixel((32, 80))[2] > 200
    assert grey.getpixel((0, 0)) == (128, 128, 128)


def test_only_pictures_that_are_asked_about_are_opened(folder, monkeypatch):
    opened, real = [], data_rows.open_picture
    monkeypatch.setattr(data_rows, "open_picture", lambda file: opened.append(file) or real(file))
    file = write(folder, *(row(f"Number {number}?", image=f"../{folder.name}/red.png") for number in range(3000)))
    data, _ = read_data(file, Columns(), 20)
    assert len(opened) == len(data.samples) == 20
    samples, _ = read_samples(file, 20)
    assert len(opened) <= 60
    assert len(samples) == 20


def test_so_many_rows_by_seed_in_their_order_and_others_for_bad_ones(folder):
    rows = [row(f"{number}?", image="red.png" if number % 2 else "gone.png") for number in range(40)]
    chosen = read(folder, *rows)[0]
    file = write(folder, *rows)
    drawn = {seed: [s.question for s in read_data(file, Columns(), 5, seed=seed)[0].samples] for seed in (0, 1)}
    assert all(len(set(asked)) == 5 for asked in drawn.values())
    assert drawn[0] != drawn[1]
    for asked in drawn.values():
        numbers = [int(question[:-1]) for question in asked]
        assert numbers == sorted(numbers)
        assert all(number % 2 for number in numbers)
    assert len(chosen) == 20
    with pytest.raises(ValueError, match="has 20 bad rows"):
        read_samples(file, 99, strict=True)


@pytest.mark.parametrize(
    ("value", "references"),
    [
        (3, ("3",)),
        (3.0, ("3",)),
        (0.5, ("0.5",)),
        (True, ("yes",)),
        (False, ("no",)),
        (["red", "crimson"], ("red", "crimson")),
        ([{"answer": "red"}, {"answer": "pink"}], ("red", "pink")),
        (" red\x00 ", ("red",)),
    ],
)
def test_right_answers(value, references):
    assert references_of(value, "answer") == references
    for nothing in (None, math.nan, []):
        with pytest.raises(ValueError, match="answer is missing"):
            references_of(nothing, "answer")
