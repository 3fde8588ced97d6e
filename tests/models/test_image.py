import io
import os
import socket
import struct
import sys

import numpy as np
import pytest
import torch
from PIL import AvifImagePlugin, Image, ImageOps, features

from tests import bad_input
from tests.bad_input import PICTURES, encoded, planes, png, scene, scene_values, small_tiff, tiff
from vtw_demo.errors import UserError
from vtw_demo.models.image import open_picture, read_picture, shown_by_browsers, shown_picture
from vtw_demo.models.video import is_clip


@pytest.fixture
def stored(tmp_path):
    def store(content):
        path = tmp_path / "stored"
        path.write_bytes(content)
        return path

    return store


@pytest.mark.parametrize("case", PICTURES, ids=lambda case: case.name)
def test_every_picture_is_read_or_refused_in_one_sentence(case, stored):
    path = stored(case.content())
    if case.said is None:
        picture, note = read_picture(path)
        assert picture.mode == "RGB"
        assert case.note in note
        assert bool(note) == bool(case.note)
    else:
        with pytest.raises(ValueError, match=case.said) as refused:
            read_picture(path)
        assert "\n" not in str(refused.value)


def colours(picture):
    """Of the middle of the left and of the right edge."""
    width, height = picture.size
    return picture.getpixel((2 * width // 16, height // 2)), picture.getpixel((14 * width // 16, height // 2))


def close(first, second, tolerance=12):
    return np.abs(np.array(first, int) - np.array(second, int)).max() <= tolerance


RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (bad_input.animated("GIF"), (RED, BLUE)),
        (bad_input.animated("PNG"), (RED, BLUE)),
        (bad_input.animated("WEBP"), (RED, BLUE)),
        (bad_input.animated("TIFF"), (RED, BLUE)),
        (bad_input.turned, (RED, BLUE)),
        (lambda: encoded(scene().convert("CMYK"), "JPEG", quality=95), (RED, BLUE)),
        (bad_input.palette_with_transparency, (WHITE, BLUE)),
        (bad_input.rgb_16_bit, (RED, BLUE)),
        (bad_input.high_efficiency, (RED, BLUE)),
        (lambda: encoded(scene(), "AVIF"), (RED, BLUE)),
        (bad_input.png_with_notes, (RED, BLUE)),
        (lambda: encoded(scene(), icc_profile=bytes(3_000_000)), (RED, BLUE)),
        (lambda: planes(np.uint8), (RED, BLUE)),
        (lambda: tiff(scene_values(np.uint16), photometric="rgb", byteorder=">"), (RED, BLUE)),
        (lambda: tiff(scene_values(), photometric="rgb", bigtiff=True, tile=(32, 32)), (RED, BLUE)),
        (lambda: encoded(Image.merge("RGBA", (*scene().split(), Image.new("L", (96, 96), 0)))), (WHITE, WHITE)),
    ],
)
def test_colours_are_as_one_sees_them(content, expected, stored):
    found = colours(open_picture(stored(content())))
    assert all(close(a, b) for a, b in zip(found, expected, strict=True)), found


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_16_bits_keeps_its_shades(kind, stored):
    values = np.tile(np.linspace(0, 65535, 96).astype(np.uint16), (96, 1))
    read = np.asarray(open_picture(stored(encoded(Image.fromarray(values), kind))))[..., 0]
    assert np.abs(read.astype(int) - values // 256).max() <= 1


def test_numbers_of_32_bits_and_floats_keep_their_shades():
    ramp = np.tile(np.linspace(0, 1, 96, dtype=np.float32), (96, 1))
    expected = np.rint(255 * ramp)
    for values in (ramp, 255 * ramp, 1000 * ramp - 500, (65535 * ramp).astype(np.int32), (2e9 * ramp).astype(np.int32)):
        read = np.asarray(shown_picture(Image.fromarray(values)))[..., 0]
        assert np.abs(read.astype(int) - expected).max() <= 1
    ramp[0, 0] = np.nan
    assert shown_picture(Image.fromarray(ramp)).mode == "RGB"


def test_broken_notes_about_a_picture_do_not_matter(stored):
    content = encoded(scene(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert close(open_picture(stored(content)).getpixel((5, 5)), RED)


def test_a_phone_picture_with_more_in_it_is_no_animation(stored):
    content = io.BytesIO()
    scene().save(content, "MPO", save_all=True, append_images=[scene()])
    assert read_picture(stored(content.getvalue()))[1] == ""


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(ValueError, match="0 × 5 pixels"):
        shown_picture(Image.new("RGB", (0, 5)))


def turned_at(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_phone_pictures_stand_upright(orientation):
    import pillow_heif

    sideways, content = scene().resize((96, 64)), io.BytesIO()
    pillow_heif.from_pillow(sideways).save(content, exif=turned_at(orientation), quality=95)
    plain = encoded(sideways, "JPEG", exif=turned_at(orientation), quality=95)
    found, expected = open_picture(content.getvalue()), open_picture(plain)
    assert found.size == expected.size
    assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).mean() < 8


GREY = np.asarray(ImageOps.grayscale(scene()))


@pytest.mark.parametrize(
    "content",
    [
        lambda: planes(np.uint16),
        lambda: planes(np.uint16, compression="zlib"),
        lambda: planes(np.uint16, tile=(32, 32)),
        lambda: tiff(np.stack(4 * [GREY.astype(np.uint16)]), photometric="separated", planarconfig="separate"),
        lambda: tiff(257 * GREY.astype(np.uint16), photometric="miniswhite"),
        lambda: tiff(scene_values(np.float32), photometric="rgb"),
        lambda: tiff(GREY.astype(np.float64)),
        lambda: tiff(GREY.astype(np.float16)),
        lambda: tiff(GREY.astype(np.uint32) * (2**24 + 1)),
        lambda: tiff(scene_values(np.uint32), photometric="rgb"),
        lambda: tiff(GREY.astype(np.complex64)),
        lambda: tiff(np.dstack([scene_values()] * 3)[..., :7], photometric="rgb", extrasamples=[0] * 4),
        lambda: small_tiff(12, b"\xff\xf8\x00"),
        lambda: small_tiff(10, b"\xff\xf8\x00"),
        lambda: small_tiff(8, b"\xff\x10", (339, 2)),
        lambda: small_tiff(8, b"\xff\x10", (254, 1)),
    ],
)
def test_a_tiff_that_would_be_read_wrongly_is_refused(content, stored):
    path = stored(content())
    for given in (path, path.read_bytes()):
        with pytest.raises(UserError, match=bad_input.BAD_TIFF):
            read_picture(given)


def test_pillows_own_reading_of_one_is_refused_too(stored):
    with Image.open(stored(planes(np.uint16))) as opened, pytest.raises(UserError, match=bad_input.BAD_TIFF):
        shown_picture(opened)
    with Image.open(stored(bad_input.cut("PNG")())) as opened, pytest.raises(UserError, match=bad_input.DAMAGED):
        shown_picture(opened)


@pytest.mark.parametrize(
    ("bits", "row", "more", "expected"),
    [
        (8, b"\xff\x10", (), (255, 16)),
        (8, b"\xff\x10", (262, 0), (0, 239)),
        (4, b"\xf3", (), (255, 51)),
        (2, b"\xd0", (), (255, 85)),
        (16, struct.pack("<2H", 65535, 30 * 257), (), (255, 30)),
        (16, struct.pack("<2H", 0, 30 * 257), (339, 1), (0, 30)),
    ],
)
def test_grey_tiffs_keep_their_shades(bits, row, more, expected):
    read = open_picture(small_tiff(bits, row, *([more] if more else [])))
    assert tuple(read.getpixel((x, 0))[0] for x in (0, 1)) == expected


def test_heic_without_its_package_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    with pytest.raises(UserError, match="pip install pillow-heif"):
        read_picture(HEIC)
    assert read_picture(encoded(scene(), "AVIF"))[1] == ""


def test_avif_without_its_decoder_is_told(monkeypatch):
    content = encoded(scene(), "AVIF")
    monkeypatch.setattr(AvifImagePlugin, "SUPPORTED", False)
    monkeypatch.setattr(features, "check", lambda name: name != "avif")
    with pytest.raises(UserError, match="reads no AVIF"):
        read_picture(content)


HEIC = bad_input.high_efficiency()


def test_what_browsers_show(stored):
    for content, expected in (
        (encoded(scene()), True), (encoded(scene(), "AVIF"), True), (HEIC, False), (planes(np.uint8), False),
        (b"MM\0*", False), (b"", True),
    ):  # fmt: skip
        assert shown_by_browsers(stored(content)) is expected


def test_a_bomb_in_a_png_with_notes_stays_one():
    notes = (b"zTXt", b"Comment\0\0" + bad_input.zlib.compress(bytes(3_000_000)))
    with pytest.raises(UserError, match="too large"):
        read_picture(png(20_000, 20_000, 1, 0, bytes(2501) * 20_000, notes))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no picture .*nothing\.png"):
        open_picture(tmp_path / "nothing.png")
    with pytest.raises(FileNotFoundError, match="Addresses are not read"):
        open_picture("https://example.org/cat.png")


def test_what_is_no_file_is_told_at_once(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link to folder").symlink_to(tmp_path / "folder")
    (tmp_path / "broken link").symlink_to(tmp_path / "gone.png")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link to pipe").symlink_to(tmp_path / "pipe")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    encoded_file = tmp_path / "picture.png"
    encoded_file.write_bytes(encoded(scene()))
    (tmp_path / "link").symlink_to(encoded_file)
    assert open_picture(str(tmp_path / "link")).size == (96, 96)
    for name, said in (
        ("folder", "is a folder"), ("link to folder", "is a folder"), ("broken link", "link to '.*gone.png'"),
        ("circle", "symbolic link"), ("pipe", "is a pipe"), ("link to pipe", "is a pipe"), ("socket", "a socket"),
        ("picture.png/more", "Not a directory"), ("x" * 300, "too long"), ("/dev/zero", "a device"), ("", "folder"),
        ("a\0b", "null byte"),
    ):  # fmt: skip
        for read in (open_picture, shown_picture, is_clip):
            with pytest.raises(UserError, match=said):
                read(tmp_path / name)
    listener.close()


@pytest.mark.skipif(os.getuid() != 0, reason="it takes another user's rights for a while")
def test_a_file_that_may_not_be_read(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(scene()))
    path.chmod(0)
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(UserError, match="can't be read: Permission denied"):
            open_picture(path)
    finally:
        os.seteuid(0)


SCENE = np.asarray(scene())


@pytest.mark.parametrize(
    "given",
    [
        SCENE,
        SCENE[::1, ::1].astype(">u2") * 257,
        SCENE / 255,
        (SCENE / 255).astype(np.float32),
        SCENE > 128,
        np.moveaxis(SCENE, 2, 0),
        np.dstack([SCENE, np.full((96, 96), 255, np.uint8)]),
        torch.from_numpy(SCENE.copy()).permute(2, 0, 1),
        torch.from_numpy(SCENE.copy()),
        (torch.from_numpy(SCENE / 255).permute(2, 0, 1)).to(torch.bfloat16).requires_grad_(),
        encoded(scene()),
        io.BytesIO(encoded(scene())),
        Image.fromarray(SCENE),
    ],
    ids=lambda given: f"{type(given).__name__} {getattr(given, 'dtype', '')} {getattr(given, 'shape', '')}",
)
def test_a_picture_in_any_form_is_the_same(given):
    shown = shown_picture(given)
    assert shown.mode == "RGB"
    assert np.abs(np.asarray(shown, int) - SCENE).max() <= 2


def test_grey_arrays_and_transparent_ones():
    ramp = np.arange(0, 250, dtype=np.uint8).reshape(25, 10)
    for given in (ramp, ramp[..., None], ramp[None], torch.from_numpy(ramp)[None], torch.from_numpy(ramp)):
        assert (np.asarray(shown_picture(given)) == ramp[..., None]).all()
    clear = np.zeros((4, 4, 4), np.uint8)
    assert (np.asarray(shown_picture(clear)) == 255).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "this is a NoneType"), ([SCENE], "this is a list"), (7, "this is a int"), ({}, "this is a dict"),
        (SCENE[None], r"shape \(1, 96, 96, 3\)"), (SCENE.astype(int), "int64"), (SCENE[..., :2], r"\(96, 96, 2\)"),
        (SCENE[0, 0], r"\(3,\)"), (SCENE.astype(float), "floats go from 0 to 255"),
        (torch.randn(3, 8, 8) - 5, "floats go from -"), (np.full((4, 4), np.nan), "floats go from nan"),
        (SCENE.astype(complex), "complex"), (SCENE.astype(object), "object"), (SCENE.astype(np.int8), "int8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_no_picture_is_told_what_one_is(given, said):
    with pytest.raises(UserError, match=f"A picture is one of Pillow's, a path.*{said}"):
        shown_picture(given)
    for empty in (np.zeros((0, 5)), np.zeros((5, 0, 3), np.uint8)):
        with pytest.raises(UserError, match=r"0 pixels|0 × 5 pixels"):
            shown_picture(empty)
