"""What replicas are asked in tests: their processes import it."""

import os
import time


def process_of(vlm):
    yield os.getpid()


def threads_of(vlm):
    import torch

    yield torch.get_num_threads()


def stubborn(vlm, note, stop):
    """Gives its process, then works until it is stopped, and leaves a note."""
    yield os.getpid()
    deadline = time.monotonic() + 60
    while not stop.is_set() and time.monotonic() < deadline:
        time.sleep(0.005)
    note.write_text("stopped" if stop.is_set() else "never stopped")
    yield "its last words"


def patient(vlm, file):
    """Gives its process, and goes on once the file is there."""
    yield os.getpid()
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    yield "done"


def fails(vlm, kind):
    yield 1
    raise kind("a sentence for people")
