"""A model's files: in a folder, in this machine's cache, on the Hugging Face hub; or one sentence why they aren't."""

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import constants, errors, snapshot_download
from huggingface_hub.utils import tqdm, validate_repo_id

from vtw_demo.errors import UserError
from vtw_demo.files import data_beside

CONFIG, ADAPTER = "config.json", "adapter_config.json"
# Weights as safetensors only, and no code.
PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
# Weights of other programs, and what is in folders.
LEFT_OUT = ["*/*", "consolidated*"]
WHOLE: dict[str, Any] = {"allow_patterns": PATTERNS, "ignore_patterns": LEFT_OUT}

Report = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes of all."""


@dataclass(frozen=True)
class ModelFiles:
    folder: Path  # has at least its configuration
    listed: tuple[str, ...]
    name: str | None = None  # on the hub, as `revision`; None where the folder is the user's own
    revision: str | None = None
    missing_bytes: int = 0  # to be downloaded


def find_files(name: str, revision: str | None = None) -> ModelFiles:
    """A model in a folder, on the hub, or without a network in the cache. Only its configuration is fetched."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return ModelFiles(folder, tuple(path.name for path in folder.iterdir()))
    with _sentences(name, revision):
        validate_repo_id(name)
        look: Any = partial(snapshot_download, name, revision=revision, tqdm_class=_bar())
        folder = Path(look(allow_patterns=[CONFIG, ADAPTER]))
        try:
            listed = look(**WHOLE, dry_run=True)
        except errors.DryRunError:  # without a network: what is in the cache must do
            look(**WHOLE, local_files_only=True)
            return ModelFiles(folder, tuple(path.name for path in folder.iterdir()), name, revision)
        missing = sum(file.file_size or 0 for file in listed if file.will_download)
        return ModelFiles(folder, tuple(file.filename for file in listed), name, revision, missing)


def fetch(files: ModelFiles, report: Report) -> Path:
    """Download what is missing, and say how far it is; what is downloaded stays in the cache when it breaks off."""
    if files.name is None or not files.missing_bytes:
        return files.folder
    with _sentences(files.name, files.revision):
        # A disk is not filled to its end for a model that doesn't fit.
        if shutil.disk_usage(files.folder).free < files.missing_bytes:
            raise OSError(errno.ENOSPC, "less is free than is missing")
        # The commit that was looked at, even if a newer one came meanwhile.
        bar = _bar(report, files.missing_bytes)
        return Path(snapshot_download(files.name, revision=files.folder.name, **WHOLE, tqdm_class=bar))


# By the class of what is raised: an error is the first of these kinds that it belongs to.
_SENTENCES = data_beside(__file__, "hub_errors.toml")


@contextmanager
def _sentences(name: str, revision: str | None) -> Iterator[None]:
    try:
        yield
    except (errors.HTTPError, errors.HFValidationError, errors.EntryNotFoundError, OSError) as error:
        is_full = getattr(error, "errno", None) == errno.ENOSPC
        kinds = {"disk full"} if is_full else {kind.__name__ for kind in type(error).mro()}
        sentence = next(sentence for kind, sentence in _SENTENCES.items() if kind in kinds)
        said = sentence.format(
            name=name,
            revision=revision,
            version="" if revision is None else f" in the revision {revision!r}",
            hub=constants.ENDPOINT,
            cache=constants.HF_HUB_CACHE,
            error=error,
            first_line=str(error).strip().partition("\n")[0],
        )
        raise UserError(said) from error


def _bar(report: Report = lambda done, total: None, total: int = 0) -> type[tqdm]:
    """A progress bar that shows nothing and reports bytes."""

    class Silent(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            # Of the two bars that count bytes, the one of what has come to the disk.
            self.counts = options.get("name") == "huggingface_hub.snapshot_download"
            self.done = 0
            super().__init__(*arguments, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if self.counts:
                self.done += int(n or 0)
                report(min(self.done, total), total)

    return Silent
