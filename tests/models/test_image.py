import io

import numpy as np
import pytest
from PIL import Image

from tests import bad_input
from tests.bad_input import PICTURES, encoded, scene
from vtw_demo.models.image import open_picture, read_picture, shown_picture


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


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_picture(tmp_path / "nothing.png")
