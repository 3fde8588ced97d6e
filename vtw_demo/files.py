"""Files that are written whole or not at all, and the files of data that stand beside modules."""

import errno
import json
import os
import secrets
import tomllib
from pathlib import Path
from typing import Any


def data_beside(module: str, name: str) -> Any:
    """What a file in JSON or TOML beside a module says; `module` is its `__file__`."""
    path = Path(module).with_name(name)
    read = tomllib.loads if path.suffix == ".toml" else json.loads
    return read(path.read_text(encoding="utf-8"))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, whatever happens to the process or the disk: what stood there stays until then.

    What is no regular file, such as /dev/stdout, is written to as it is. Raises OSError with a sentence that names the
    file.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    path = path.resolve()  # a link stays one
    unfinished = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}")
    try:
        try:
            with unfinished.open("xb", buffering=0) as file:
                write_all(file.fileno(), content)
            os.replace(unfinished, path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OSError(f"{path} can't be written: {error.strerror or error}.") from error


def check_writable(path: Path | None) -> None:
    """Raise OSError, with a sentence that names it, for a file that `write_whole` couldn't write; None is none."""
    if path is None or (os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)):
        return
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        tried = path.resolve()
        if os.path.exists(tried):
            tried = tried.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}")
        tried.touch()
        tried.unlink()
    except OSError as error:
        raise OSError(f"{path} can't be written: {error.strerror or error}.") from error


def write_all(handle: int, content: bytes) -> None:
    """Write all of it to an open file, and to the disk; a full disk takes a part first."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(handle, rest) :]
    os.fsync(handle)
