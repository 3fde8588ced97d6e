"""What went wrong: its kind, which is counted, and one sentence for people."""

import errno
import traceback
from dataclasses import dataclass

from vtw_demo.errors import UserError
from vtw_demo.files import data_beside
from vtw_demo.models.devices import give_memory_back, is_out_of_memory

REFUSED, QUEUE_FULL, OUT_OF_MEMORY, DISK_FULL, FAILED = "refused", "queue full", "out of memory", "disk full", "failed"

SENTENCES = data_beside(__file__, "errors.toml")
# What a line of the log has room for: where it went wrong is at the end.
TRACED_FRAMES = 12


class QueueFullError(UserError):
    """No more may wait: said at once."""


@dataclass(frozen=True)
class Fault:
    kind: str
    sentence: str


def fault_of(error: Exception) -> Fault:
    """What to say of `error`: its own sentence where it is meant for people, else one of SENTENCES."""
    if isinstance(error, UserError):
        return Fault(QUEUE_FULL if isinstance(error, QueueFullError) else REFUSED, str(error))
    kind = FAILED
    if is_out_of_memory(error):
        kind = OUT_OF_MEMORY
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        kind = DISK_FULL
    return Fault(kind, SENTENCES[kind])


def free_what_failed(error: Exception) -> None:
    """Let go of the memory that a run which ran out of it held: its tensors hang on the frames that `error` passed."""
    if is_out_of_memory(error):
        traceback.clear_frames(error.__traceback__)
        give_memory_back()


def trace_of(error: Exception, *, with_message: bool) -> str:
    """Where it went wrong, in one line. A message can hold what a visitor asked."""
    frames = traceback.extract_tb(error.__traceback__)[-TRACED_FRAMES:]
    places = " > ".join(f"{frame.name} ({frame.filename}:{frame.lineno})" for frame in frames)
    message = f": {error}" if with_message else ""
    return f"{type(error).__name__}{message} in {places}".replace("\n", " ")
