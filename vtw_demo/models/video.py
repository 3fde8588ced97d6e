"""A short video clip: frames sampled evenly from a file, or one sentence that says why there are none."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from vtw_demo.errors import UserError
from vtw_demo.models.image import PICTURE_BRANDS, open_file

if TYPE_CHECKING:
    import av

# What a file begins with, after so many bytes, and FFmpeg's name for its format. A format is never guessed: some
# (playlists, scripts) make FFmpeg open other files and addresses.
FORMATS: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftyp", "mov"),
    (4, b"moov", "mov"),
    (4, b"mdat", "mov"),
    (0, b"\x1a\x45\xdf\xa3", "matroska"),
    (8, b"AVI ", "avi"),
    (0, b"GIF8", "gif"),
    (0, b"OggS", "ogg"),
)
MAXIMUM_SECONDS = 60.0
MAXIMUM_BYTES = 100_000_000
MAXIMUM_PIXELS = 4096 * 2304
# A minute at 120 frames a second.
MAXIMUM_FRAMES_READ = 7200
# Frames are kept no larger; the models here scale them further down.
LONGEST_SIDE = 1280
_TOO_LONG = f"The clip is too long: it may last up to {MAXIMUM_SECONDS:g} seconds. Cut a shorter one."


@dataclass(frozen=True)
class Clip:
    """What a model sees of a clip."""

    frames: tuple[Image.Image, ...]  # in RGB, all of one size, in order
    times: tuple[float, ...]  # when each is shown, in seconds from the start
    seconds: float  # how long the clip is


@dataclass(frozen=True)
class FrameSampling:
    """How many frames a model was trained to see: `per_second`, but at least `minimum` and at most `maximum`."""

    minimum: int
    maximum: int
    per_second: float = 1.0

    def count(self, seconds: float) -> int:
        """How many frames of a clip so long. Even, where the model may choose: the Qwen-VLs see frames in pairs."""
        if self.minimum == self.maximum:
            return self.minimum
        wanted = min(max(seconds * self.per_second, self.minimum), self.maximum)
        return max(self.minimum, int(wanted) // 2 * 2)


Shown = Image.Image | Clip
"""What a model can be shown."""


def is_clip(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as a clip's does, whatever its name. Raises what `open_file` does."""
    with open_file(path) as file:
        return _format(file.read(12)) is not None


def find_clip(path: str | os.PathLike[str], sampling: FrameSampling | None) -> Clip | None:
    """The clip in a file, for a model with `sampling` (None: it is asked about pictures only); None for a picture.

    An animated GIF is a clip where the model takes clips; another clip where it takes none raises UserError.
    """
    with open_file(path) as file:
        kind = _format(file.read(12))
    if kind is None or (kind == "gif" and sampling is None):
        return None
    if sampling is None:
        raise UserError(
            "This model is asked about pictures, not about clips: choose a picture, or a model that takes clips, such "
            "as Video-LLaVA, Qwen2.5-VL and Qwen3-VL."
        )
    return read_clip(path, sampling)


def like(shown: Shown, colour: tuple[int, int, int]) -> Shown:
    """A picture or clip of the same size, and as many frames, all of one colour."""
    if isinstance(shown, Clip):
        return replace(shown, frames=tuple(Image.new("RGB", frame.size, colour) for frame in shown.frames))
    return Image.new("RGB", ImageOps.exif_transpose(shown).size, colour)


def contact_sheet(shown: Shown, columns: int = 4) -> Image.Image:
    """A clip's frames side by side, in order, row by row; a picture as it is."""
    if isinstance(shown, Image.Image):
        return shown
    width, height = shown.frames[0].size
    columns = min(columns, len(shown.frames))
    sheet = Image.new("RGB", (columns * width, -(-len(shown.frames) // columns) * height), "white")
    for number, frame in enumerate(shown.frames):
        sheet.paste(frame, (number % columns * width, number // columns * height))
    return sheet


def read_clip(path: str | os.PathLike[str], sampling: FrameSampling) -> Clip:
    """The clip in a file: frames evenly spaced from its first to its last, upright, in RGB.

    Where the clip has fewer frames than the model wants, some are there more than once. Sound isn't read.
    """
    try:
        import av
    except ImportError as error:
        raise UserError("Clips are read with the package av, which isn't installed: pip install av.") from error
    with open_file(path) as file:
        content = file.read(MAXIMUM_BYTES + 1)
    if not content:
        raise UserError("The clip's file is empty: choose another one.")
    if len(content) > MAXIMUM_BYTES:
        raise UserError(f"The clip's file is too large: it may have up to {MAXIMUM_BYTES // 1_000_000} MB.")
    try:
        stamps, unit, seconds = _timeline(content)
        evenly = np.linspace(stamps[0], stamps[-1], sampling.count(seconds))
        sampled = [min(stamps, key=lambda stamp: abs(stamp - wanted)) for wanted in evenly]
        frames = _decode(content, sorted(set(sampled)))
    except (av.FFmpegError, EOFError, MemoryError) as error:
        raise UserError("The clip's file is damaged or of a kind that can't be read: choose another one.") from error
    # Where one can't be decoded, the nearest is shown.
    shown = [min(frames, key=lambda stamp: abs(stamp - wanted)) for wanted in sampled]
    first = frames[shown[0]]
    # Their size may change on the way.
    same = {stamp: frame if frame.size == first.size else frame.resize(first.size) for stamp, frame in frames.items()}
    return Clip(tuple(same[stamp] for stamp in shown), tuple((stamp - stamps[0]) * unit for stamp in shown), seconds)


def _format(content: bytes) -> str | None:
    """FFmpeg's name of the format of a file that begins so; None for what is no clip."""
    if content[4:8] == b"ftyp" and content[8:12] in PICTURE_BRANDS:
        return None
    return next((name for start, mark, name in FORMATS if content[start : start + len(mark)] == mark), None)


def _open(content: bytes) -> av.container.InputContainer:
    name = _format(content)
    if name is None:
        raise UserError("This file is not a clip that can be read: use MP4, WebM, MOV, AVI, MKV, OGV or GIF.")
    import av

    # From memory, and with no protocol: whatever is written in the file, nothing else is opened.
    options = {"protocol_whitelist": "none"}
    return av.open(io.BytesIO(content), mode="r", format=name, options=options, metadata_errors="ignore")


def _timeline(content: bytes) -> tuple[list[int], float, float]:
    """When a clip's frames are shown, in order, in units of so many seconds, and how many seconds it lasts; read from
    the packets alone, nothing is decoded."""
    with _open(content) as container:
        if not container.streams.video:
            raise UserError("This file holds no moving picture, only sound: choose a clip.")
        stream = container.streams.video[0]
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > MAXIMUM_PIXELS:
            raise UserError(f"The clip's frames are too large: {width} x {height} pixels. Scale it down.")
        durations: dict[int, int] = {}
        for packet in container.demux(stream):
            if packet.pts is not None and packet.size:
                durations[packet.pts] = packet.duration or 0
            if len(durations) > MAXIMUM_FRAMES_READ:
                raise UserError(_TOO_LONG)
        unit = float(stream.time_base or 1)
    if not durations:
        raise UserError("The clip has no frames: choose another one.")
    stamps = sorted(durations)
    shown = stamps[-1] - stamps[0]
    # Where the file doesn't say how long the last frame is shown, as long as the others on average.
    last = durations[stamps[-1]] or shown / max(1, len(stamps) - 1)
    seconds = (shown + last) * unit
    if seconds > MAXIMUM_SECONDS:
        raise UserError(_TOO_LONG)
    return stamps, unit, seconds


def _decode(content: bytes, wanted: list[int]) -> dict[int, Image.Image]:
    """The frames at some times, in order, as far as the file is whole; where one can't be decoded, the next one."""
    import av

    found: dict[int, Image.Image] = {}
    with _open(content) as container, suppress(av.FFmpegError):
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            if frame.pts is not None and frame.pts >= wanted[0]:
                found[frame.pts] = _upright(frame)
                wanted = [stamp for stamp in wanted if stamp > frame.pts]
            if not wanted:
                break
    if not found:
        raise UserError("None of the clip's frames can be decoded: choose another one.")
    return found


def _upright(frame: av.VideoFrame) -> Image.Image:
    picture = frame.to_image().convert("RGB")
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    # Cameras note how they were held, in degrees counter-clockwise.
    return picture.rotate(frame.rotation, expand=True)
