from dataclasses import replace

import pytest
from PIL import Image

from tests.models.test_video import write as write_clip
from vtw_demo.models.video import FrameSampling
from vtw_demo.server.query import Query


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("RGB", (8, 6), "red").save(path)
    return {"path": str(path)}


def test_a_query_is_read(picture):
    query = Query.read(picture, " What is it? ", 7.0, 12)
    assert (query.picture.size, query.picture.mode, query.layer, query.max_new_tokens) == ((8, 6), "RGB", 7, 12)


def test_identity_is_all_that_a_full_run_depends_on(picture, tmp_path):
    other = tmp_path / "other.png"
    Image.new("RGB", (8, 6), "blue").save(other)
    query = Query.read(picture, "What is it?", 7, 12)
    assert Query.read(picture, " What is it?", 3, 12).identity == query.identity
    assert Query.read(picture, "What is that?", 7, 12).identity != query.identity
    assert Query.read(picture, "What is it?", 7, 13).identity != query.identity
    assert replace(query, detail="low").identity != query.identity
    assert Query.read({"path": str(other)}, "What is it?", 7, 12).identity != query.identity


def test_a_clip_is_read_where_the_model_takes_clips(tmp_path):
    file = {"path": str(write_clip(tmp_path / "clip.mp4"))}
    query, more = (Query.read(file, "?", 7, 12, FrameSampling(frames, frames)) for frames in (4, 6))
    assert (len(query.picture.frames), len(more.picture.frames)) == (4, 6)
    assert query.identity == Query.read(file, "?", 9, 12, FrameSampling(4, 4)).identity != more.identity
    with pytest.raises(ValueError, match="not about clips: choose a picture"):
        Query.read(file, "?", 7, 12)


@pytest.mark.parametrize(
    ("question", "layer", "cap", "expected"),
    [
        ("", 7, 12, "question is empty"),
        ("  \n", 7, 12, "question is empty"),
        (None, 7, 12, "question is empty"),
        (["?"], 7, 12, "must be text"),
        ("?", "seven", 12, "withdrawal layer must be a whole number; this is 'seven'"),
        ("?", 7.5, 12, "withdrawal layer must be a whole number; this is 7.5"),
        ("?", True, 12, "withdrawal layer must be a whole number"),
        ("?", 7, None, "number of new tokens must be a whole number"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(picture, question, layer, cap, expected):
    with pytest.raises(ValueError, match=expected):
        Query.read(picture, question, layer, cap)


def test_bad_pictures_are_refused_in_a_sentence(tmp_path):
    text, empty, cut = tmp_path / "text.png", tmp_path / "empty.png", tmp_path / "cut.jpg"
    text.write_text("not a picture")
    empty.touch()
    Image.effect_noise((200, 200), 90).save(cut)
    cut.write_bytes(cut.read_bytes()[:4000])
    for file, expected in (
        (None, "There is no picture"),
        ({"path": None}, "There is no picture"),
        ({"path": str(text)}, "not a picture that can be read"),
        ({"path": str(empty)}, "file is empty"),
        ({"path": str(cut)}, "damaged or cut short"),
    ):
        with pytest.raises(ValueError, match=expected):
            Query.read(file, "What is it?", 7, 12)


def test_transparency_is_shown_on_white(tmp_path):
    path = tmp_path / "clear.png"
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(path)
    assert Query.read({"path": str(path)}, "?", 7, 12).picture.getpixel((0, 0)) == (255, 255, 255)


def test_a_turned_photo_is_set_upright(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), "red").save(path, exif=exif)
    assert Query.read({"path": str(path)}, "?", 7, 12).picture.size == (20, 40)
