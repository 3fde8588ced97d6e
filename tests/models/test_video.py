import io
import struct
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from transformers.video_utils import VideoMetadata

from vtw_demo.models import video as clips
from vtw_demo.models.processors import ClipProcessor
from vtw_demo.models.video import Clip, FrameSampling, contact_sheet, find_clip, is_clip, like, read_clip

WIDTH, HEIGHT, PER_SECOND = 64, 48, 10
# What transformers' own video processors make of `frames`, the Qwen-VLs' with `cap_pixels_per_frame`.
GOLDEN = np.load(Path(__file__).parents[1] / "data" / "clip_golden.npz")


def shade(number, frames):
    """The grey of a frame, so that frames are told apart after a lossy codec."""
    return round(20 + 200 * number / max(1, frames - 1))


def write(path, frames=20, codec="mpeg4", size=(WIDTH, HEIGHT), per_second=PER_SECOND, left=None):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=per_second)
        stream.width, stream.height = size
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        for number in range(frames):
            grey = np.full((size[1], size[0], 3), shade(number, frames), np.uint8)
            if left is not None:
                grey[:, : size[0] // 2] = left
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, per_second)
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode())
    return path


def greys(clip):
    return [float(np.asarray(frame).mean()) for frame in clip.frames]


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "mpeg4"), (".mov", "mpeg4"), (".mkv", "mpeg4"),
                                               (".avi", "mpeg4"), (".webm", "libvpx"), (".gif", "gif")])  # fmt: skip
def test_frames_are_spread_evenly_from_the_first_to_the_last(tmp_path, suffix, codec):
    path = write(tmp_path / f"clip{suffix}", frames=21, codec=codec)
    assert is_clip(path)
    clip = read_clip(path, FrameSampling(5, 5))
    wanted = [0, 5, 10, 15, 20]
    assert clip.times == pytest.approx([number / PER_SECOND for number in wanted], abs=0.02)
    assert greys(clip) == pytest.approx([shade(number, 21) for number in wanted], abs=20)
    assert clip.seconds == pytest.approx(2.1, abs=0.02)
    assert {(frame.size, frame.mode) for frame in clip.frames} == {((WIDTH, HEIGHT), "RGB")}


def test_a_short_clip_shows_frames_more_than_once(tmp_path):
    assert read_clip(write(tmp_path / "a.mp4", frames=2), FrameSampling(8, 8)).times == (0.0,) * 4 + (0.1,) * 4
    still = read_clip(write(tmp_path / "b.mp4", frames=1), FrameSampling(4, 16, 2.0))
    assert still.times == (0.0,) * 4


@pytest.mark.parametrize(("seconds", "frames"), [(0.5, 4), (2.0, 4), (3.2, 6), (4.9, 8), (7.9, 14), (8, 16), (60, 16)])
def test_the_qwens_see_so_many_frames_a_second_in_pairs(seconds, frames):
    assert FrameSampling(4, 16, 2.0).count(seconds) == frames


def test_a_clip_that_was_filmed_sideways_is_shown_upright(tmp_path):
    path = write(tmp_path / "a.mp4", left=255)
    turned = tmp_path / "turned.mp4"
    content = path.read_bytes()
    # The matrix of the track's header: a quarter turn instead of none.
    none = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    quarter = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, HEIGHT << 16, 0, 1 << 30)
    start = content.index(none, content.index(b"tkhd"))
    turned.write_bytes(content[:start] + quarter + content[start + len(none) :])
    frame = read_clip(turned, FrameSampling(1, 1)).frames[0]
    assert frame.size == (HEIGHT, WIDTH)
    pixels = np.asarray(frame).mean(-1)
    # A quarter turn clockwise brings what was on the left to the top.
    assert pixels[: WIDTH // 2].mean() > 200 > 100 > pixels[WIDTH // 2 :].mean()


def sound(folder):
    path = folder / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def pure_sound(folder):
    path = folder / "sound.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(1000))
    return path


def empty(folder):
    path = folder / "empty.mp4"
    path.touch()
    return path


def cut_short(folder):
    path = write(folder / "a.mp4")
    path.write_bytes(path.read_bytes()[:300])
    return path


def playlist(folder):
    """One that would make FFmpeg open another file."""
    path = folder / "list.mp4"
    path.write_text(f"ffconcat version 1.0\nfile {write(folder / 'a.mp4')}\n")
    return path


def stream_list(folder):
    path = folder / "list.m3u8"
    path.write_text(f"#EXTM3U\n#EXTINF:2,\n{write(folder / 'a.mp4')}\n")
    return path


def picture(folder):
    path = folder / "picture.mp4"
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "PNG")
    path.write_bytes(content.getvalue())
    return path


def too_long(folder):
    return write(folder / "long.mp4", frames=70, per_second=1, size=(16, 16))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (sound, "only sound: choose a clip"),
        (pure_sound, "not a clip that can be read: use MP4"),
        (empty, "file is empty: choose another"),
        (cut_short, "damaged or of a kind that can't be read: choose another"),
        (playlist, "not a clip that can be read"),
        (stream_list, "not a clip that can be read"),
        (picture, "not a clip that can be read"),
        (too_long, "too long: it may last up to 60 seconds"),
    ],
)
def test_what_is_no_short_clip_is_said_in_a_sentence(tmp_path, make, said):
    with pytest.raises(ValueError, match=said) as caught:
        read_clip(make(tmp_path), FrameSampling(8, 8))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("limit", "value", "said"),
    [
        ("MAXIMUM_BYTES", 100, "too large: it may have up to"),
        ("MAXIMUM_PIXELS", WIDTH * HEIGHT - 1, f"frames are too large: {WIDTH} x {HEIGHT} pixels"),
        ("MAXIMUM_FRAMES_READ", 19, "too long"),
    ],
)
def test_its_limits_hold(tmp_path, monkeypatch, limit, value, said):
    path = write(tmp_path / "a.mp4")
    monkeypatch.setattr(clips, limit, value)
    with pytest.raises(ValueError, match=said):
        read_clip(path, FrameSampling(8, 8))


def test_what_is_damaged_on_the_way_shows_the_nearest_frames(tmp_path):
    path = write(tmp_path / "a.mp4")
    content = path.read_bytes()
    start, end = content.index(b"mdat"), content.index(b"moov")
    middle = (start + end) // 2
    path.write_bytes(content[:middle] + b"\xff" * (end - middle) + content[end:])
    clip = read_clip(path, FrameSampling(8, 8))
    assert (len(clip.frames), clip.seconds) == (8, 2.0)
    # None is shown at another time than its own.
    assert greys(clip) == pytest.approx([shade(round(time * PER_SECOND), 20) for time in clip.times], abs=10)
    assert clip.times[-1] < 1.5


def test_what_a_file_is_depends_on_its_content_and_the_model(tmp_path):
    sampling = FrameSampling(3, 3)
    clip, animation = write(tmp_path / "a.mp4"), write(tmp_path / "a.gif", codec="gif")
    # As a program sends it that gives no name.
    clip, still, iphones = clip.rename(tmp_path / "clip"), tmp_path / "still.mp4", tmp_path / "photo.heic"
    Image.new("RGB", (8, 8)).save(still, "PNG")
    iphones.write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(20))
    assert find_clip(iphones, sampling) is None
    assert [is_clip(path) for path in (clip, animation, still, iphones)] == [True, True, False, False]
    assert find_clip(still, sampling) is None
    for path in (clip, animation):
        assert len(find_clip(path, sampling).frames) == 3
    assert find_clip(animation, None) is None
    with pytest.raises(ValueError, match="about pictures, not about clips: choose a picture, or a model that takes"):
        find_clip(clip, None)


def test_a_clip_is_blanked_and_laid_out_frame_by_frame():
    frames = tuple(Image.new("RGB", (4, 3), (number, 0, 0)) for number in range(6))
    clip = Clip(frames, tuple(map(float, range(6))), 6.0)
    blank = like(clip, (9, 9, 9))
    assert (blank.times, blank.seconds) == (clip.times, clip.seconds)
    assert [frame.getcolors() for frame in blank.frames] == [[(12, (9, 9, 9))]] * 6
    sheet = contact_sheet(clip)
    assert sheet.size == (16, 6)
    assert [sheet.getpixel((4 * (number % 4), 3 * (number // 4)))[0] for number in range(6)] == list(range(6))
    assert contact_sheet(frames[0]) is frames[0]
    assert like(frames[0], (9, 9, 9)).size == (4, 3)


def golden_frames():
    return [Image.fromarray(frame) for frame in GOLDEN["frames"]]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_pairs_of_frames_are_prepared_as_by_transformers(name):
    size = {"shortest_edge": 32 * 32, "longest_edge": 4 * 48 * 48}
    mean, std = GOLDEN[f"{name}:mean"].tolist(), GOLDEN[f"{name}:std"].tolist()
    pictures = hf.Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, image_mean=mean, image_std=std)
    videos = [golden_frames()]
    made = ClipProcessor(name, pictures, {"size": size})(videos, video_metadata=[VideoMetadata(total_num_frames=7)])
    assert made["video_grid_thw"].tolist() == GOLDEN[f"{name}:grid"].tolist()
    same_but_for_rounding(made["pixel_values_videos"], GOLDEN[f"{name}:pixels"])


def test_single_frames_are_prepared_as_by_transformers():
    pictures = hf.VideoLlavaImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 40, "width": 40})
    made = ClipProcessor("video_llava", pictures, {})([golden_frames()])
    same_but_for_rounding(made["pixel_values_videos"], GOLDEN["video_llava:pixels"])


def same_but_for_rounding(pixels, golden):
    """Pillow and torchvision may differ by one of 255 shades in a few pixels."""
    golden = torch.from_numpy(golden)
    assert pixels.shape == golden.shape
    difference = (pixels - golden).abs()
    assert difference.max() < 1.01 / 255 / 0.26
    assert (difference > 1e-3).float().mean() < 1e-3
